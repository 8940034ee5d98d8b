"""Was this made by Bark? A hint: HuBERT's features and a classifier of one straight line.

from minibark.detect import Detector

detector = Detector.from_pretrained(classifier="classifier.safetensors")
detector.probability(audio, sample_rate)
"""

from .classifier import Classifier
from .containers import AudioError
from .detector import Detector, Judgement

__all__ = ["AudioError", "Classifier", "Detector", "Judgement"]
