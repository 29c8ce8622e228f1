"""fastbn's kernels as PyTorch's own operators, in compiled code.

shim       PyTorch's stable C interface: its functions, and tensors in compiled code
table      what compiled code is given besides the dispatcher's stack
forward, backward    the operators; `calls` is the one function that they are compiled as
plans      which kernels take a tensor: Python, asked once a shape
entries    machine code between the dispatcher and `calls`
register   what PyTorch is told, and whose calls are meant
"""
