"""Transformers of tokens and images: sequences, their classes, translation, images."""

from jaxop.transformers.base import TransformerConfig as TransformerConfig
from jaxop.transformers.classifier import SequenceClassifier as SequenceClassifier
from jaxop.transformers.classifier import SequenceClassifierConfig as SequenceClassifierConfig
from jaxop.transformers.image import VisionTransformer as VisionTransformer
from jaxop.transformers.image import VisionTransformerConfig as VisionTransformerConfig
from jaxop.transformers.sequence import SequenceTransformer as SequenceTransformer
from jaxop.transformers.sequence import SequenceTransformerConfig as SequenceTransformerConfig
from jaxop.transformers.translation import EncoderDecoderTransformer as EncoderDecoderTransformer
from jaxop.transformers.translation import EncoderDecoderTransformerConfig as EncoderDecoderTransformerConfig
