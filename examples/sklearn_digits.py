"""scikit-learn: digits scaled by fastbn in batches, as from a stream, then classified; and the same from a pickle."""

import pickle

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from fastbn.adapters.sklearn import BatchNormScaler

x, labels = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x.astype(np.float32), labels, random_state=0)

scaler = BatchNormScaler()
for batch in np.array_split(x_train, 20):
    scaler.partial_fit(batch)

model = make_pipeline(scaler, LogisticRegression(max_iter=500)).fit(x_train, y_train)
np.testing.assert_allclose(model[0].var_, scaler.var_, rtol=1e-14)  # the pipeline has fitted it again, on the whole

accuracy = pickle.loads(pickle.dumps(model)).score(x_test, y_test)
print(f"test accuracy {accuracy:.1%}")
assert accuracy > 0.94
