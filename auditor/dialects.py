"""How each quant_method writes its declaration.  Every value comes from a file and may be of any type."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from auditor.declaration import MIXED, Activation, Algorithm, Family, Group, named_algorithm, with_activation
from auditor.draft import MAX_GROUPS, Draft, group_size, kv_scheme, pair, patterns, positive, shown, text
from auditor.jsonfile import Json, strings, table


def _modelopt(draft: Draft, config: Json) -> None:
    inner = table(config.get("quantization"))
    flat = not inner
    source = config if flat else inner
    if not flat:
        draft.path += ("quantization",)
    producer = table(config.get("producer"))
    draft.producer, draft.version = text(producer.get("name")), text(producer.get("version"))
    size = group_size(draft, source)
    groups = table(source.get("config_groups"))
    for group in list(groups.values())[:MAX_GROUPS]:
        size = size or positive(table(table(group).get("weights")).get("group_size"))
    algo = source.get("quant_algo")
    if isinstance(algo, str) and algo.strip().upper() == MIXED:
        draft.mixed = True
        _modelopt_layers(draft, source)
    elif isinstance(algo, str):
        draft.algorithm = named_algorithm(algo, size)
        weight_only = groups and all(not table(g).get("input_activations") for g in groups.values())
        if weight_only and draft.algorithm.activation is Activation.STATIC:
            draft.algorithm = with_activation(draft.algorithm, Activation.NONE)
        elif text(source.get("activation_scheme")).lower() == "dynamic":
            draft.algorithm = with_activation(draft.algorithm, Activation.DYNAMIC)
        if draft.algorithm.family is Family.UNKNOWN:
            draft.problem("quant_algo", f"names the unknown algorithm {algo[:60]!r}", fatal=False)
    elif algo is not None:
        draft.problem("quant_algo", f"is {shown(algo)}, not the name of an algorithm")
    elif source.get("kv_cache_quant_algo") is None and source.get("kv_cache_scheme") is None:
        draft.problem("quant_algo", "is missing")
    listed = [key for key in ("ignore", "exclude_modules") if source.get(key) is not None]
    # Without a list: vLLM and SGLang read `ignore` of the flat object, `exclude_modules` of the inner one.
    patterns(draft, source, *(listed or ["ignore" if flat else "exclude_modules"])[:1])
    draft.kv_cache = kv_scheme(source.get("kv_cache_quant_algo")) or kv_scheme(source.get("kv_cache_scheme"))


def _modelopt_layers(draft: Draft, source: Json) -> None:
    layers = source.get("quantized_layers")
    if not isinstance(layers, dict) or not layers:
        draft.problem("quantized_layers", "is missing or empty, and MIXED_PRECISION says nothing without it")
    for name, entry in table(layers).items():
        algo = table(entry).get("quant_algo")
        if not isinstance(algo, str):
            draft.problem("quantized_layers", f"names no quant_algo for {name[:200]!r}")
            continue
        draft.layers[name] = named_algorithm(algo, positive(table(entry).get("group_size")))


def _compressed_tensors(draft: Draft, config: Json) -> None:
    draft.producer, draft.version = "compressed-tensors", text(config.get("version"))
    groups = config.get("config_groups")
    if groups is not None and not isinstance(groups, dict):
        draft.problem("config_groups", f"is {shown(groups)}, not an object")
    for name, group in list(table(groups).items())[:MAX_GROUPS]:
        if not isinstance(group, dict):
            # A preset scheme's name maps to its targets: {"FP8": ["Linear"]}
            if named_algorithm(name).family is not Family.UNKNOWN and isinstance(group, list):
                draft.groups.append(Group(name, named_algorithm(name), tuple(strings(group))))
            else:
                draft.problem(f"config_groups.{name[:60]}", f"is {shown(group)}, not an object")
            continue
        if group.get("weights") is None:
            continue
        if not isinstance(group["weights"], dict):
            draft.problem(f"config_groups.{name[:60]}.weights", f"is {shown(group['weights'])}, not an object")
            continue
        layout = text(group.get("format")) or text(config.get("format"))
        targets = tuple(strings(group.get("targets")))
        if not targets:
            draft.problem(f"config_groups.{name[:60]}.targets", "names no layer", fatal=False)
        draft.groups.append(Group(name, _ct_algorithm(layout, group), targets))
    if not table(groups) and config.get("kv_cache_scheme") is None and not table(config.get("sparsity_config")):
        draft.problem("config_groups", "is missing or empty: nothing is declared to be quantised")
    patterns(draft, config, "ignore")
    draft.kv_cache = kv_scheme(config.get("kv_cache_scheme"))


def _ct_algorithm(layout: str, group: Json) -> Algorithm:
    weights = table(group.get("weights"))
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), text(weights.get("strategy")).lower()
    size = positive(weights.get("group_size"))
    family = Family.UNKNOWN
    if (layout.startswith("nvfp4") and bits in (4, None)) or (
        bits == 4 and kind == "float" and strategy == "tensor_group"
    ):
        family = Family.NVFP4
    elif (layout.startswith("mxfp4") and bits in (4, None)) or (bits == 4 and kind == "float" and size == 32):
        family = Family.MXFP4
    elif layout.startswith("mxfp8") or (bits == 8 and kind == "float" and strategy == "group" and size == 32):
        family = Family.MXFP8
    elif kind == "int":
        family = Family.INTEGER
    elif bits == 8 and kind == "float":
        known = {"tensor": Family.FP8, "channel": Family.FP8_CHANNEL, "block": Family.FP8_BLOCK}
        family = known.get(strategy, Family.UNKNOWN)
    sides = weights.get("block_structure")
    block = pair(sides) or ((128, 128) if family is Family.FP8_BLOCK else None)
    name = f"{layout or family.value}" + (f" ({strategy})" if strategy else "")
    return Algorithm(name[:100], family, _ct_activation(group.get("input_activations")), size, block)


def _ct_activation(value: object) -> Activation:
    """``dynamic: "local"`` computes block scales while serving but still needs the stored global one."""
    if not value:
        return Activation.NONE
    dynamic = table(value).get("dynamic")
    if dynamic is True:
        return Activation.DYNAMIC
    return Activation.STATIC if dynamic in (False, None, "local") and table(value) else Activation.UNKNOWN


def _fp8(draft: Draft, config: Json) -> None:
    sides = config.get("weight_block_size")
    draft.block = pair(sides)
    if sides is not None and draft.block is None:
        draft.problem("weight_block_size", "is not a pair of positive whole numbers")
    scheme = text(config.get("activation_scheme")).lower()
    if "activation_scheme" in config and scheme not in ("static", "dynamic"):
        draft.problem("activation_scheme", f"is {shown(config['activation_scheme'])}, neither static nor dynamic")
    activation = {"static": Activation.STATIC, "dynamic": Activation.DYNAMIC}.get(scheme, Activation.UNKNOWN)
    draft.scale_fmt, draft.expert_dtype = text(config.get("scale_fmt")), text(config.get("expert_dtype")).lower()
    draft.kv_cache = "FP8" if config.get("kv_cache_scheme") else ""
    family = Family.FP8_BLOCK if draft.block else Family.FP8
    draft.algorithm = Algorithm("fp8", family, activation, None, draft.block)
    if draft.expert_dtype in ("fp4", "mxfp4", "e2m1"):
        experts = Algorithm("fp4 experts", Family.MXFP4, Activation.DYNAMIC, 32)
        draft.groups.append(Group("experts", experts, ("*.experts.*",)))
    # vLLM and SGLang read either, older transformers the first alone.
    patterns(draft, config, "modules_to_not_convert", "ignored_layers")


def _mxfp4(draft: Draft, config: Json) -> None:
    draft.algorithm = Algorithm("MXFP4", Family.MXFP4, Activation.DYNAMIC, 32)
    draft.experts_only = True
    patterns(draft, config, "modules_to_not_convert", "ignored_layers")


def _mxfp8(draft: Draft, config: Json) -> None:
    draft.algorithm = Algorithm("MXFP8", Family.MXFP8, Activation.DYNAMIC, 32)
    patterns(draft, config, "modules_to_not_convert", "ignored_layers")


def _fbgemm(draft: Draft, config: Json) -> None:
    draft.algorithm = Algorithm("FBGEMM FP8", Family.FP8_CHANNEL, Activation.DYNAMIC)
    patterns(draft, config, "modules_to_not_convert")


def _integer(draft: Draft, config: Json) -> None:
    bits = positive(config.get("bits"))
    name = f"{draft.method} {bits} bits" if bits else draft.method
    draft.algorithm = Algorithm(name, Family.INTEGER, Activation.UNKNOWN, positive(config.get("group_size")))
    patterns(draft, config, "modules_to_not_convert", "llm_int8_skip_modules", "ignore")


def _quark(draft: Draft, config: Json) -> None:
    draft.producer, draft.version = "quark", text(config.get("version"))
    whole = table(config.get("global_quant_config"))
    if whole:
        draft.algorithm = _quark_algorithm(whole)
    for key in ("layer_quant_config", "layer_type_quant_config"):
        for name, entry in list(table(config.get(key)).items())[:MAX_GROUPS]:
            if table(entry).get("weight"):
                draft.groups.append(Group(name, _quark_algorithm(table(entry)), (name,)))
    if not draft.algorithm and not draft.groups:
        draft.problem("global_quant_config", "is missing or empty: nothing is declared to be quantised")
    if config.get("export") is not None and not isinstance(config["export"], dict):
        draft.problem("export", f"is {shown(config['export'])}, not an object")
    patterns(draft, config, "exclude")
    for entry in table(config.get("kv_cache_quant_config")).values():
        spec = table(entry).get("output_tensors") or table(entry).get("input_tensors")
        draft.kv_cache = draft.kv_cache or _quark_kind(spec)
    if not draft.kv_cache and strings(table(config.get("export")).get("kv_cache_group")):
        draft.kv_cache = "FP8"


def _quark_specs(value: object) -> list[Json]:
    return [table(item) for item in value] if isinstance(value, list) else [table(value)] if value else []


def _quark_kind(value: object) -> str:
    specs = _quark_specs(value)
    dtype = text(specs[0].get("dtype")).lower() if specs else ""
    return "FP8" if dtype.startswith("fp8") else dtype.upper()


def _quark_algorithm(entry: Json) -> Algorithm:
    weights = _quark_specs(entry.get("weight"))
    first = weights[0] if weights else {}
    dtype, scheme = text(first.get("dtype")).lower(), text(first.get("qscheme")).lower()
    size, family = positive(first.get("group_size")), Family.UNKNOWN
    if not weights:
        family = Family.PLAIN
    elif dtype.startswith(("int", "uint")):
        family = Family.INTEGER
    elif dtype in ("fp4", "mxfp4", "mx") and (size == 32 or dtype != "fp4"):
        family = Family.MXFP4 if text(first.get("mx_element_dtype")).lower() in ("", "fp4") else Family.UNKNOWN
    elif dtype == "fp4" and size == 16:
        family = Family.NVFP4
    elif dtype.startswith("fp8") and len(weights) == 1:
        kinds = {"per_tensor": Family.FP8, "per_channel": Family.FP8_CHANNEL, "per_block": Family.FP8_BLOCK}
        family = kinds.get(scheme, Family.UNKNOWN)
    inputs = _quark_specs(entry.get("input_tensors"))
    if not inputs:
        activation = Activation.NONE
    else:
        static = any(spec.get("is_dynamic") is False for spec in inputs)
        activation = Activation.STATIC if static else Activation.DYNAMIC
    name = "+".join(text(spec.get("dtype")) for spec in weights)[:60] or "none"
    return Algorithm(f"{name} {scheme}".strip(), family, activation, size)


_READERS: dict[str, Callable[[Draft, Json], None]] = {
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "compressed_tensors": _compressed_tensors,
    "fp8": _fp8,
    "deepseek_v4_fp8": _fp8,
    "mxfp4": _mxfp4,
    "gpt_oss_mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "fbgemm_fp8": _fbgemm,
    "quark": _quark,
}
# Methods that some loader reads and that are not taken apart here.
_OTHERS = frozenset({
    "torchao", "gguf", "nvfp4", "fp_quant", "fouroversix", "metal", "sinq", "gemma", "exl2", "exl3", "deepspeedfp",
    "tpu_int8", "ipex", "inc", "rtn", "petit_nvfp4", "w8a8_fp8", "ptpc_fp8", "marlin", "squeezellm", "humming", "mlx",
})  # fmt: skip
_INTEGER_METHODS = (
    "gptq", "awq", "bitsandbytes", "int8", "int4", "auto-round", "autoround", "intel/auto-round", "smoothquant", "hqq",
    "aqlm", "eetq", "vptq", "bitnet", "quanto", "w8a8_int8", "w4afp8", "experts_int8", "moe_wna16", "qqq", "spqr",
    "higgs",
)  # fmt: skip


def read(file: str, key: str, config: Json) -> Draft:
    """One file's declaration; what cannot be understood is noted in ``problems``."""
    method = config.get("quant_method")
    named = text(method).lower()
    if method is None:
        named = guess(config)
    draft = Draft(file, key, named, tuple(key.split(".")) if key else ())
    if method is not None and not named:
        draft.problem("quant_method", f"is {shown(method)}, not the name of a method")
    elif not named:
        draft.problem("quant_method", "is missing, and no other key says what the file describes")
    if named.startswith("modelopt"):
        draft.method = "modelopt"
    elif named == "compressed_tensors":
        draft.method = "compressed-tensors"
    reader = _READERS.get(draft.method) or (_integer if draft.method.startswith(_INTEGER_METHODS) else None)
    if reader is not None:
        reader(draft, config)
    elif named:
        if named not in _OTHERS:
            draft.problem("quant_method", f"names the unknown method {named[:60]!r}", fatal=False)
        draft.algorithm = Algorithm(named, Family.UNKNOWN)
        patterns(draft, config, *(k for k in ("ignore", "modules_to_not_convert", "exclude_modules") if k in config))
    return draft


def guess(config: Json) -> str:
    """The method of an object that names none, by the keys only that method writes."""
    if "quantization" in config or "quant_algo" in config:
        return "modelopt"
    return "compressed-tensors" if "config_groups" in config else ""


def located(config: Json) -> Iterator[tuple[str, object]]:
    """(key path, value) of every place in config.json where a declaration may lie, the one loaders use first."""
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            yield key, config[key]
        for part in ("text_config", "llm_config", "language_config", "thinker_config"):
            inner = table(config.get(part)).get(key)
            if inner is not None:
                yield f"{part}.{key}", inner
