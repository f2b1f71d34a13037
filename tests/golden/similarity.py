"""Makes tests/golden/fixtures/similarity.json: what the reference libraries say of some pairs of texts.

Run by hand; the tests read what is committed. Python 3.11 with rapidfuzz==3.14.6 nltk==3.10.4 rouge_score==0.1.2:

    python tests/golden/similarity.py
"""

import json
import warnings
from pathlib import Path

from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.gleu_score import sentence_gleu
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer

warnings.filterwarnings("ignore")

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("the cat is on the mat today", "there is a cat on the mat"),
    (
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "It is a guide to action that ensures that the military will forever heed Party commands",
    ),
    ("the the the the the the the", "the cat is on the mat"),
    ("order 72447: refund!", "Refund the order 72447."),
    ("", "something"),
    ("something", ""),
    ("Straße über Köln", "Strasse uber Koeln"),
    ("a b c d e f g h i j", "a b c d e x g h i j k l"),
    ("nothing alike", "entirely different words"),
]


def main():
    rouge = RougeScorer(["rouge1", "rouge2", "rouge3", "rouge4", "rouge5", "rougeL"], use_stemmer=False)
    cases = []
    for text, reference in PAIRS:
        scores = rouge.score(reference, text)
        words, expected = text.split(), reference.split()
        metrics = {
            "fuzzy_match": fuzz.ratio(text, reference) / 100,
            "bleu": sentence_bleu([expected], words) if words else 0.0,
            "gleu": sentence_gleu([expected], words),
            "rouge_l": scores["rougeL"].fmeasure,
        }
        metrics |= {f"rouge_{n}": scores[f"rouge{n}"].fmeasure for n in range(1, 6)}
        cases.append({"input": text, "reference": reference, "scores": metrics})
    path = Path(__file__).parent / "fixtures" / "similarity.json"
    path.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


main()
