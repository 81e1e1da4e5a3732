"""Weight methods of the PEFT library (https://github.com/huggingface/peft), under its own names and options.

Documentation: https://huggingface.co/docs/peft. ``peft_type`` is PEFT's name of a method (IA3, VeRA, LoHa, LoKr, OFT,
BOFT, ...), ``peft_options`` the keys of that method's PEFT configuration. PEFT puts its layers into a copy of the
backbone's module tree that shares the backbone's weights; the layers are taken out, made to call the backbone's own
modules, and replace them during a call. So the backbone is never changed and several adapters can share it.

What PEFT registers as a parameter or persistent buffer is saved (VeRA's projections, for example); what it derives from
the configuration and the backbone is derived again on loading. PEFT decides which parameters require gradients, and
these count as activated.

Refused, with the reason: types that insert prompts (this package counts, masks and pools them itself); types and
options that need more than layers: a forward pass of PEFT's own, a term in the loss, a call after each step, a pass
over data before training, or adapters trained before; those whose predictions depend on the batch or on chance; options
after which PEFT would train or change the backbone's own weights (``bias``, PiSSA, OLoRA). Layers on modules that no
output depends on (BERT's pooler, which ``all-linear`` includes) are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, model_validator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mept.config import FrozenMapping, MethodConfig, Options, plain
from mept.errors import unknown_name
from mept.methods.base import Method
from mept.methods.stand_ins import StandIns, borrow

if TYPE_CHECKING:
    from peft import PeftConfig as LayerConfig

    from mept.backbones import Backbone

REFUSED_TYPES = {
    "prompt_tuning": "it inserts prompts; use method `prompt_tuning`",
    "p_tuning": "it inserts prompts; use method `p_tuning`",
    "prefix_tuning": "it trains keys and values of prompt positions; use method `p_tuning_v2`",
    "multitask_prompt_tuning": "it inserts prompts, and every example must name its task",
    "cpt": "it inserts prompts made of training examples",
    "adaption_prompt": "it inserts prompts into attention",
    "cartridge": "it trains a cache of keys and values made of a text",
    "adalora": "its ranks must be reallocated after each step and its loss has an extra term",
    "poly": "every example must name its task",
    "lily": "its router averages over the whole batch, so a prediction would depend on its batch-mates",
    "xlora": "it mixes LoRA adapters that were trained before",
    "shadow": "it runs a second model beside the backbone",
}
"""PEFT's types that do not work as layers alone, and why."""

REFUSED_OPTIONS = {
    "use_asa": "subspaces must be pruned after each step",
    "alora_invocation_tokens": "PEFT's own forward pass looks for the tokens",
    "arrow_config": "it routes among adapters that were trained before",
    "monteclora_config": "its loss has an extra term",
    "layer_replication": "it changes how many layers the backbone has",
    "megatron_config": "PEFT imports the module it names",
    "runtime_offload_base_weight": "it moves the backbone's weights",
    "sample_at_inference": "predictions would differ from call to call",
}
"""Options that need more than layers, and why."""

DATA_DRIVEN = ("eva", "corda", "lora_ga")
"""Values of LoRA's ``init_lora_weights`` that need a pass over data before training."""


def peft_types() -> list[str]:
    """Return the names of PEFT's weight methods that work here, in lower case."""
    from peft.utils.peft_types import PeftType

    return sorted(name for name in (kind.value.lower() for kind in PeftType) if name not in REFUSED_TYPES)


def known_type(name: str) -> str:
    """Return PEFT's name for a weight method, in lower case.

    Raises:
        ValueError: there is no such method, or it cannot work here.
    """
    lower = name.lower()
    if lower in REFUSED_TYPES:
        raise ValueError(f"PEFT's {name!r} does not work as layers alone: {REFUSED_TYPES[lower]}")
    if lower not in peft_types():
        raise ValueError(unknown_name("PEFT type", name, peft_types()))
    return lower


class PeftConfig(MethodConfig):
    """Options of a weight method of the PEFT library."""

    peft_type: Annotated[str, AfterValidator(known_type)] = "ia3"
    """PEFT's name for the method, in upper or lower case; stored in lower case."""
    peft_options: Options = FrozenMapping()
    """Keys of the PEFT configuration of that type, such as ``{r: 4, target_modules: [q, v]}``; the others keep PEFT's
    defaults."""

    @model_validator(mode="after")
    def _known_options(self) -> PeftConfig:
        layer_config(self.peft_type, self.peft_options)
        return self


def layer_config(peft_type: str, options: Mapping[str, Any]) -> LayerConfig:
    """Return PEFT's configuration for a type.

    Args:
        peft_type: one of :func:`peft_types`.
        options: keys of that configuration.

    Raises:
        ValueError: an unknown option (the nearest one is named), one that cannot work here, or a value PEFT refuses.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils.peft_types import PeftType

    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type.upper())]
    known = {f.name for f in fields(kind)} - {f.name for f in fields(peft.PeftConfig)}
    for name, value in options.items():
        if name not in known:
            raise ValueError(unknown_name(f"key in `peft_options` of {peft_type!r}:", name, known))
        if value and name in REFUSED_OPTIONS:
            raise ValueError(f"`peft_options`: {name!r} does not work as layers alone: {REFUSED_OPTIONS[name]}")
        if name == "init_lora_weights" and value in DATA_DRIVEN:
            raise ValueError(f"`peft_options`: {name} {value!r} needs a pass over data before training; leave it out")
    try:
        return kind(**plain(options))
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"PEFT refuses `peft_options` {plain(options)} for {peft_type!r}: {error}") from None


class PeftLayers(StandIns):
    """PEFT's layers as stand-ins for the modules they wrap.

    A tensor that several layers share (VeRA's projections, VB-LoRA's vectors) is saved once, under its first name.

    Args:
        modules: PEFT's layers by the full names of the modules they replace.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(modules)
        self._aliases = _aliases(self)
        self.register_state_dict_post_hook(_drop_aliases)
        self.register_load_state_dict_pre_hook(_add_aliases)


def _aliases(module: nn.Module) -> dict[str, str]:
    """Return the additional names of tensors that have several, with the first name of each."""
    first: dict[int, str] = {}
    tensors = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    named = [(name, first.setdefault(id(tensor), name)) for name, tensor in tensors]
    return {name: original for name, original in named if name != original}


def _drop_aliases(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for alias in module._aliases:
        state.pop(prefix + alias, None)


def _add_aliases(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for alias, name in module._aliases.items():
        if prefix + name in state:
            state[prefix + alias] = state[prefix + name]


def peft_layers(backbone: Backbone, config: LayerConfig) -> PeftLayers:
    """Let PEFT make its layers for a backbone and return them; the backbone stays as it is.

    Args:
        backbone: frozen.
        config: PEFT's configuration.

    Raises:
        ValueError: PEFT refuses the configuration for this model, or the layers would train or change the backbone's
            own weights.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    model = backbone.model
    tree = _shared_copy(model)
    originals = dict(zip(tree.modules(), model.modules(), strict=True))
    modules = dict(tree.named_modules(remove_duplicate=False))
    weights = dict(tree.named_parameters())
    what = f"PEFT's {config.peft_type.value.lower()!r}"  # type: ignore[union-attr]
    with _ReadOnly(chain(model.parameters(), model.buffers())):
        try:
            tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](tree, config, "default")  # type: ignore[index]
        except Exception as error:  # any error in PEFT means that an option does not fit the model
            raise ValueError(f"{what} cannot be made: {' '.join(str(error).split())}") from error
    layers = {}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if name and getattr(modules[parent], child) is not module:
            layers[name] = getattr(modules[parent], child)
    for layer in layers.values():
        _give_back(layer, originals)
    _check(layers, weights, model, tuner, what)
    method = PeftLayers({name: layer for name, layer in layers.items() if backbone.uses(name)})
    if not method.activated_parameters():
        raise ValueError(f"{what} leaves nothing to train with these options")
    return method


def _shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model's tree whose parameters are frozen and share the memory of the model's."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo | {id(buffer): buffer for buffer in model.buffers()})


class _ReadOnly(TorchDispatchMode):
    """Refuses operations that write into the memory of given tensors: some initialisations do, through ``.data``."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        # All tensors without memory have the address 0.
        self._memory = {tensor.untyped_storage().data_ptr() for tensor in tensors} - {0}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for index, argument in enumerate(function._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if argument.is_write and isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._memory:
                raise ValueError("it writes into the backbone's own weights; use another initialisation")
        return function(*args, **kwargs)


def _check(
    layers: Mapping[str, nn.Module], weights: Mapping[str, nn.Parameter], model: nn.Module, tuner: nn.Module, what: str
) -> None:
    """Raise ValueError if PEFT's method is more than its layers."""
    trained = [name for name, weight in weights.items() if weight.requires_grad]
    if trained:
        raise ValueError(
            f"{what} would train the backbone's own weights ({trained[0]} and others), which stay frozen; drop `bias`"
        )
    own = dict(model.named_parameters())
    if any(weight.data_ptr() != own[name].data_ptr() for name, weight in weights.items()):
        raise ValueError(f"{what} would change the backbone's own weights; use another initialisation")
    nested = [name for name in layers if any(name.startswith(f"{other}.") for other in layers)]
    if nested:
        raise ValueError(f"{what} wraps {nested[0]} inside a module that it wraps too; target one of them")
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    if any(id(weight) in inside for weight in weights.values()):
        raise ValueError(f"{what} keeps the backbone's own weights in its layers; that cannot work here")
    outside = [name for name, p in tuner.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside:
        raise ValueError(f"{what} trains {outside[0]}, which belongs to no layer; that cannot work here")


def _give_back(layer: nn.Module, originals: Mapping[nn.Module, nn.Module]) -> None:
    """Make a layer call the backbone's own modules instead of their copies."""
    for name, child in list(layer.named_children()):
        if child in originals:
            borrow(layer, name, originals[child])
        else:
            _give_back(child, originals)


def build(config: PeftConfig, backbone: Backbone) -> PeftLayers:
    """Build PEFT's layers for the backbone."""
    return peft_layers(backbone, layer_config(config.peft_type, config.peft_options))


PEFT = Method(
    name="peft",
    title="Weight methods of the PEFT library",
    paper="https://github.com/huggingface/peft",
    config=PeftConfig,
    build=build,
    formula="as PEFT's type",
    needs_weights=True,  # of some types; of others with some options
)
