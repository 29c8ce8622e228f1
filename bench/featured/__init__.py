"""What the features beyond plain batch norm cost, beside plain batch norm and beside what they replace."""
