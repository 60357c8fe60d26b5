"""How an adapter was made, for its card: run.json in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fitcoach_tune.publish.markdown import table


def made(record: dict[str, Any], merged: dict[str, Any] | None) -> str:
    """With what, when, and what was checked."""
    versions = record["versions"]
    own = ("fitcoach_tune", "python")
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in own)
    return (
        f"Fine-tuned with fitcoach-tune {versions['fitcoach_tune']} (Python {versions['python']}, {libraries}), "
        f"finished {record['finished'][:10]}. `config.resolved.yaml` has every setting; `run.json` has the facts below "
        f"and the hashes of base, data and files. {_merging(merged) if merged else _saving(record['check'])}"
    )


def _saving(check: dict[str, Any]) -> str:
    return (
        "After saving, PEFT loaded the adapter onto the plain base: in float32 its logits are the trained model's "
        f"{_but(check['logit_difference'])}, where the adapter moves them by {check['logit_change_from_base']:.1e}."
    )


def _merging(found: dict[str, Any]) -> str:
    return (
        "The adapter was merged into its base in float32 and saved in bf16. On a prompt of "
        f"{found['tokens']} tokens the merged float32 weights give the adapter's logits "
        f"{_but(found['difference_fp32'])}, and the saved ones {_but(found['difference_bf16'])}, where the "
        f"adapter moves them by {found['moved']:.1e}; the likeliest next token is the same at {found['same_token']} of "
        f"{found['tokens']} places."
    )


def _but(difference: float) -> str:
    return f"but for {difference:.1e} of the largest" if difference else "to the last digit"


def recipe(record: dict[str, Any]) -> str:
    """Data, method, hardware, time and price as a table."""
    return table(("", ""), [*_data(record), *_method(record), *_cost(record)])


def _data(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    source, rows, config = record["data"]["source"], record["data"]["rows"], record["config"]
    link = f"[{source['name']}](https://huggingface.co/datasets/{source['name']}) at commit `{source['revision']}`"
    yield "data", link if source["revision"] else f"`{source['name']}`, not on the Hub (SHA-256 `{source['sha256']}`)"
    kept = "near-duplicates kept on one side" if config["split"] == "grouped" else "drawn at random"
    dropped = f", {rows['dropped']} left out as too long" if rows["dropped"] else ""
    yield "rows", f"{rows['train']} to train on, {rows['test']} held out ({kept}){dropped}"


def _method(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    config, training = record["config"], record["training"]
    yield (
        "adapter",
        f"LoRA of rank {config['lora_r']}, alpha {config['lora_alpha']:g}, dropout {config['lora_dropout']:g}, on "
        f"{', '.join(config['target_modules'])}: {training['trainable_parameters']:,} parameters",
    )
    warm_up = f" after a warm-up over {config['warmup_ratio']:.0%} of the steps" if config["warmup_ratio"] else ""
    limit = f", gradient norm at most {config['max_grad_norm']:g}" if config["max_grad_norm"] else ""
    yield (
        "optimiser",
        f"{config['optim']}, learning rate {config['learning_rate']:g}, {config['lr_scheduler_type']}{warm_up}, weight "
        f"decay {config['weight_decay']:g}{limit}",
    )
    size, epochs = training["batch_size"], training["epochs"]
    yield "steps", f"{training['steps']} of {size} rows, {epochs:.4g} epochs, seed {config['seed']}"
    yield "precision", f"base and arithmetic in {config['dtype']}, LoRA weights in float32"
    held_out = training["eval_losses"]
    last = f", {held_out[-1]['eval_loss']:.4f} on the held-out rows at the end" if held_out else ""
    first = f"{training['first_loss']:.4f} at the first step, {training['last_loss']:.4f} at the last"
    yield "loss", f"{first}{last} (nats per supervised token)"


def _cost(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    device, training, seconds = record["device"], record["training"], record["seconds"]
    count = f"{device['count']} × " if device["count"] > 1 else ""
    peak = (
        f", at most {training['peak_memory_bytes'] / 2**30:.1f} GiB of memory" if training["peak_memory_bytes"] else ""
    )
    yield "hardware", f"{count}{device['hardware']}{peak}"
    speed = f"{training['examples_per_second']:.3g} rows a second"
    yield "time", f"{_time(seconds['total'])}, of which {_time(seconds['train'])} training, at {speed}"
    if price := record.get("price"):
        yield "price", f"{price['total']:.4g}, at {price['per_hour']:g} an hour for the machine"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
