"""CFG110."""

from __future__ import annotations

import re
from collections.abc import Iterator

from auditor.architecture import EXPERT_SPELLINGS, expert_leaves, is_side, model_types
from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.rule import CheckpointRule
from auditor.tensorref import TensorRef

_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(\w+)\.[\w.]+")


class ForeignNames(CheckpointRule):
    """Experts are stored under names that the declared architecture does not load.

    ## What it checks
    The projections of single experts (`experts.N.LEAF`) against what transformers and vLLM load for the
    model_type: w1, w2, w3 for Mixtral, PhiMoE, MiniMax and LFM2; gate_proj, up_proj, down_proj for Qwen, DeepSeek,
    GLM and their relatives; up_proj and down_proj for Nemotron-H.  Architectures that are not in the table are
    left alone.

    ## Why it matters
    An exporter that rewrites the experts as separate layers and saves them under its own names leaves a file that
    looks whole.

    ## What engines do
    transformers fills the experts with random numbers, warns about new weights, and answers.  vLLM stops at the
    unknown name.

    ## Fix
    Rename the tensors.  The header grows or shrinks, so the shards are written anew, out of place.

    ## References
    transformers, conversion_mapping.py; vLLM, make_expert_params_mapping in each model
    """

    code, title, severity = "CFG110", "tensor names of another architecture", Severity.ERROR
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per wrong leaf, on its first tensor."""
        known = expert_leaves(model_types(ctx.checkpoint.config))
        if known is None:
            return
        model_type, leaves = known
        wrong: dict[str, list[TensorRef]] = {}
        for ref in ctx.checkpoint.tensors.values():
            if ".experts." not in ref.name:
                continue
            found = _EXPERT.fullmatch(ref.name)
            if found and found[3] in EXPERT_SPELLINGS and found[3] not in leaves and not is_side(found[1]):
                wrong.setdefault(found[3], []).append(ref)
        for leaf, refs in wrong.items():
            yield self.finding(
                refs[0],
                f"{model_type} loads {', '.join(sorted(leaves))} for each expert, not {leaf} ({len(refs)} tensors)",
                count=len(refs),
                related=[ref.name for ref in refs[1:]],
                layer=refs[0].name.rpartition(".")[0],
            )
