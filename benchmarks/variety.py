"""How varied the built-in datasets are, and how near the questions of the gold and the dev set come to what is trained.

    python benchmarks/variety.py

Prints two Markdown tables. The first counts words: of all runs of n words the share that are different ones, which
falls as a set grows. The second gives quantiles of the similarity to the nearest other text: 1 is the same string, 0
shares no piece. It is the cosine of TF-IDF vectors of runs of 2 to 5 characters in lower case, weighted as the texts
that are searched say.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from fitcoach_tune.builtin import FITNESS, rows_path

SETS = (FITNESS, "builtin:fitness-dev", "builtin:fitness-gold", "builtin:logbook")
QUANTILES = {"5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "largest": 1.0}
OTHER_LANGUAGE = re.compile("[a-z]{2}-")


def queries(source: str, keep: Callable[[str], object] = lambda name: True) -> list[str]:
    """What is asked in the rows of a built-in set whose id `keep` accepts."""
    rows = map(json.loads, rows_path(source).read_text(encoding="utf-8").splitlines())
    return [row["messages"][1]["content"] for row in rows if keep(row["id"])]


def phrases() -> list[str]:
    """The hand-written queries of the fitness set, before the generator varied them."""
    files = sorted(rows_path(FITNESS).with_name("phrases").glob("*.txt"))
    lines = [line for file in files if file.stem != "openers" for line in file.read_text("utf-8").splitlines()]
    return [line.rpartition("\t")[2] for line in lines if not line.startswith("#")]


def words(text: str) -> list[str]:
    """Without case, marks and apostrophes: "What's" and "whats" are the same."""
    return re.findall(r"\w+", text.casefold().replace("'", "").replace("’", ""))


def distinct(texts: Iterable[str], n: int) -> float:
    """The share of different runs among all runs of n words within a text (distinct-n of Li et al. 2016, NAACL)."""
    sentences = [words(text) for text in texts]
    runs = [tuple(sentence[i : i + n]) for sentence in sentences for i in range(len(sentence) - n + 1)]
    return len(set(runs)) / len(runs)


def nearest(texts: list[str], others: list[str] | None = None) -> np.ndarray:
    """Each text's similarity to the nearest of the others, or of the other texts: float64 [len(texts)]."""
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(2, 5))
    searched = vectors.fit_transform(others or texts)
    found = vectors.transform(texts) @ searched.T
    if others is None:
        found.setdiag(0)
    return found.max(axis=1).toarray().ravel()


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def word_table() -> list[str]:
    lines = [line("set", "queries", "words", "different", *(f"distinct {n}" for n in (1, 2, 3, 4)))]
    lines.append(line("---", *["---:"] * 7))
    for source in SETS:
        texts = queries(source, lambda name: not OTHER_LANGUAGE.match(name))
        said = [word for text in texts for word in words(text)]
        title = f"`{source}`" + (", the English rows" if source == FITNESS else "")
        shares = [f"{distinct(texts, n):.0%}" for n in (1, 2, 3, 4)]
        lines.append(line(title, f"{len(texts):,}", f"{len(said):,}", f"{len(set(said)):,}", *shares))
    return lines


def similarity_table() -> list[str]:
    written = phrases()
    compared = {
        "`builtin:fitness-dev` to the phrases": nearest(queries("builtin:fitness-dev"), written),
        "`builtin:fitness-gold` to the phrases": nearest(queries("builtin:fitness-gold"), written),
        "the phrases to one another": nearest(written),
        "`builtin:fitness` to one another": nearest(queries(FITNESS)),
        "`builtin:logbook` to one another": nearest(queries("builtin:logbook")),
    }
    lines = [line("nearest other text", "queries", *QUANTILES), line("---", *["---:"] * (1 + len(QUANTILES)))]
    for title, found in compared.items():
        values = [f"{value:.2f}" for value in np.quantile(found, list(QUANTILES.values()))]
        lines.append(line(title, f"{len(found):,}", *values))
    return lines


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("\n".join([*word_table(), "", *similarity_table()]))


if __name__ == "__main__":
    main()
