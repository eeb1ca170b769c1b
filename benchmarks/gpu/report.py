"""The GPU measurements as Markdown: a table a part, and what did not end well in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report import commit_of, table
from benchmarks.trl.report import markdown as race_markdown

Report = Mapping[str, Any]
Outcome = Mapping[str, Any]
GIGA = 1e9


def markdown(report: Report) -> str:
    """Machine, device, and every part that was asked for."""
    title = "# GPU, toy shapes: no figure here says anything of a GPU" if report["toy"] else "# GPU"
    parts = [title, conditions(report)]
    for part, outcomes in report["parts"].items():
        parts += [f"## {part}", *_part(part, outcomes)]
    return "\n\n".join(parts) + "\n"


def conditions(report: Report) -> str:
    """Machine, device, versions, commit and seed."""
    machine = report["machine"]
    device = report["device"]
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    memory = f", {device['memory_mib']:,.0f} MiB" if "memory_mib" in device else ""
    driver = f", driver {device['driver']}, CUDA {device['torch_cuda']}" if device.get("driver") else ""
    return (
        f"{device['name']}{memory}{driver}; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; {machine['system']}; {versions}; commit {commit_of(report['code'])}; "
        f"seed {report['seed']}."
    )


def _part(part: str, outcomes: Sequence[Outcome]) -> list[str]:
    done = [each for each in outcomes if each["status"] == "done"]
    texts = [_TABLES[part](done)] if done else []
    others = [each for each in outcomes if each["status"] != "done"]
    if others:
        texts.append("\n".join(f"- {each['name']}: {each['status']}. {_told(each)}" for each in others))
    return texts or ["Nothing was measured."]


def _told(outcome: Outcome) -> str:
    """The last line of the error, which is the exception's own, or all of a message for users."""
    lines = [line.strip() for line in (outcome["error"] or "").splitlines() if line.strip()]
    return " ".join(lines if outcome["status"] == "left out" else lines[-1:])


def _correctness(done: Sequence[Outcome]) -> str:
    names = list(dict.fromkeys(check["name"] for each in done for check in each["result"]["checks"]))
    found = [{check["name"]: check for check in each["result"]["checks"]} for each in done]
    rows = [[name, *(_verdict(checks.get(name)) for checks in found)] for name in names]
    columns = ["base", *(each["name"] for each in done)]
    computed = ["computes in", *(each["result"]["computes_in"].removeprefix("torch.") for each in done)]
    return f"{table(columns, [computed, *rows])}\n\nLog-probabilities in nats, absolute differences."


def _verdict(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return ""
    judged = "" if check["passed"] else f" **fails: {check['required']}**"
    return f"{check['value']:.2g}{judged}"


def _decode(done: Sequence[Outcome]) -> str:
    texts = []
    for each in done:
        result = each["result"]
        rows: list[list[str]] = []
        for cell in result["cells"]:
            start = [each["name"], cell["role"], str(cell["batch"])]
            if "error" in cell:
                rows.append([*start, "out of memory", "", "", "", ""])
                continue
            step = cell["seconds_per_step"]
            floor = cell["floor_seconds_per_step"]
            metrics = [f"{cell['tokens_per_second']:,.0f}", f"{step * 1e3:.2f}", f"{floor * 1e3:.2f}"]
            rows.append([*start, *metrics, f"{floor / step:.0%}", "yes" if cell["captured"] else "no"])
        columns = ["shape", "role", "batch", "tokens/s", "ms a step", "floor ms", "of the floor", "captured"]
        texts.append(
            f"{table(columns, rows)}\n\n{result['parameters'] / GIGA:.2f} billion parameters; prompts of "
            f"{result['prompt_tokens']} tokens, responses of {result['response_tokens']}; copying on the "
            f"device moves {result['bandwidth_bytes_per_second'] / GIGA:,.0f} GB/s."
        )
    return "\n\n".join(texts)


def _race(done: Sequence[Outcome]) -> str:
    note = "Both racers hold their models in fp32: the peer's are loaded so."
    return "\n\n".join([note, *(f"#{race_markdown(each['result']).strip()}" for each in done)])


def _iterations(done: Sequence[Outcome]) -> str:
    rows = []
    for each in done:
        result = each["result"]
        base = f"{result['base_mib']:,.0f}"
        for phase, seconds in result["seconds"].items():
            peak = result["peak_mib"][phase]
            rows.append([each["name"], phase, f"{seconds:.3g}", "" if peak is None else f"{peak:,.0f}", base])
    work = done[0]["result"]["workload"]
    result = done[0]["result"]
    note = (
        f"{work['rollouts']} rollouts, prompt {work['prompt_tokens']} and response "
        f"{work['max_response_tokens']} tokens; {work['num_epochs']} × {work['num_minibatches']} optimizer "
        f"steps; micro-batches of {work['micro_batch_tokens']} tokens; LoRA rank {work['lora_rank']}; "
        f"gradient checkpointing {'on' if result['gradient_checkpointing'] else 'off'}. "
        "Peaks are the CUDA allocator's."
    )
    return f"{table(['base', 'phase', 's', 'peak MiB', 'base MiB'], rows)}\n\n{note}"


def _largest(done: Sequence[Outcome]) -> str:
    last = {each["result"]["precision"]: each["name"] for each in done}
    return f"Largest that completes an iteration: {'; '.join(last.values())}.\n\n{_iterations(done)}"


_TABLES: Mapping[str, Callable[[Sequence[Outcome]], str]] = {
    "correctness": _correctness,
    "decode": _decode,
    "race": _race,
    "memory-7b": _iterations,
    "largest": _largest,
    "iteration": _iterations,
}
