"""Writes this folder's files; run once with each scikit-learn: `python write.py DIR`.

scikit-learn 0.24.2 with NumPy 1.19 (Python 3.9), 1.1.3 with 1.23, 1.6.1 with 2.4 (3.11). Each file
has a line of JSON first, what the classifier says of `QUESTIONS`, and then the pickle.
"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np

QUESTIONS = [[0.5, -1.0, 2.0], [0.0, 0.0, 0.0], [-3.0, 1.5, 0.25]]


def main(folder: Path) -> None:
    import sklearn
    from sklearn.linear_model import LogisticRegression

    random = np.random.RandomState(0)
    x, y = random.randn(40, 3), np.arange(40) % 2
    x[:, 0] += y
    for multi_class in ("auto", "multinomial"):
        model = LogisticRegression(multi_class=multi_class, C=0.5).fit(x, y)
        answers = model.predict_proba(np.array(QUESTIONS))[:, 1].tolist()
        for protocol in (0, 1, 2, 3, 4, 5) if multi_class == "auto" else (4,):
            name = f"{sklearn.__version__}-{multi_class}-{protocol}.pkl"
            line = json.dumps(answers).encode() + b"\n"
            (folder / name).write_bytes(line + pickle.dumps(model, protocol))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
