"""Parts of scikit-learn without types: it states none, and those that pyright infers are wrong."""

from typing import Any

from sklearn import linear_model, neighbors, preprocessing

LogisticRegression: Any = linear_model.LogisticRegression
KNeighborsClassifier: Any = neighbors.KNeighborsClassifier
normalize: Any = preprocessing.normalize
Ridge: Any = linear_model.Ridge
