"""Imported once by the fork server, so that every worker and every trainer starts with the heavy modules loaded."""

import pyarrow.parquet  # noqa: F401
import torch  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import strop.core.trainer.train  # noqa: F401
