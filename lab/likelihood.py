"""How likely an answer is to a prompt: `python -m lab.likelihood --prompt ... --answer ...`.

For one order of writing, log p is a sum of conditionals: each token, given those written before it
(`chain`, a forward a token). A masked model has no order of its own, and its conditionals need not
agree about one probability. LLaDA's estimate (arXiv 2502.09992, algorithm 3) has as its mean the
mean over all orders (`monte_carlo`): some tokens are masked, the log-probabilities of these are
added up, and the sum counts by answer / masked.

Left out on purpose: guidance, several answers at once, answers that are longer than the canvas.

Letters: n canvases, P prompt, L answer, V vocabulary.
"""

import sys
from argparse import Namespace

import torch
from torch import Tensor

from dllm import check_prompt
from lab.command_line import Parser, encode, find_model, use_threads
from lab.files import whole_text, write
from load_weights import DTYPES, check_memory
from model import Pass
from strategies import require

BATCH = 8  # canvases in a forward


def conditionals(model, prompt: list[int], answer: list[int], masked: Tensor, batch=BATCH):
    """What the model says of an answer, some of whose tokens are masked, bool [n, L].

    Returns log p of each masked token, float64 [n, L], 0 for the others, and where it is the
    likeliest, bool [n, L]. The mask itself is never written: it has no share in p.
    """
    mask_id, device, P, L = model.config.mask_token_id, model.device, len(prompt), len(answer)
    shift = model.config.shift  # how many slots before its own the logits of a token stand
    rows = min(batch, len(masked)) * L * model.config.vocab_size
    check_memory(f"the logits of {min(batch, len(masked))} answers", rows * 4 * 3, device)
    whole, given = torch.tensor(answer), torch.tensor(prompt)
    log_p, first = [], []
    for part in masked.split(batch):
        canvas = torch.cat((given.expand(len(part), -1), whole.masked_fill(part, mask_id)), 1)
        at = Pass(rows=slice(P - shift, P + L - shift))
        logits = model(canvas.to(device), at).float()  # [n, L, V]
        logits[..., mask_id] = -torch.inf
        wanted = whole.to(device).expand(len(part), -1)[..., None]  # [n, L, 1]
        own = (logits.gather(-1, wanted)[..., 0] - logits.logsumexp(-1)).cpu().double()
        log_p.append(own.masked_fill(~part, 0.0))  # no product: -inf times 0 is NaN
        first.append((logits.argmax(-1) == wanted[..., 0]).cpu())
    return torch.cat(log_p), torch.cat(first)


@torch.inference_mode()
def chain(model, prompt: list[int], answer: list[int], order=None, batch=BATCH):
    """log p when the tokens are written in this order, by default from left to right: the sum of
    their conditionals; and whether each was the likeliest in its turn.

    order: the places of the answer, from 0, each once
    """
    check(model, prompt, answer)
    L = len(answer)
    order = torch.tensor(checked_order(range(L) if order is None else order, L))
    turn = order.argsort()  # when each place is written
    masked = turn >= torch.arange(L)[:, None]  # [L, L]: before each turn
    log_p, first = conditionals(model, prompt, answer, masked, batch)
    now = torch.arange(L), order
    return log_p[now].sum().item(), bool(first[now].all())


@torch.inference_mode()
def monte_carlo(model, prompt: list[int], answer: list[int], samples=128, seed=0, batch=BATCH):
    """LLaDA's estimate of log p from so many canvases, each masked by chance (eq. 6)."""
    check(model, prompt, answer)
    require(samples >= 1, "samples", samples, "at least 1")
    L, generator = len(answer), torch.Generator().manual_seed(seed)
    counts = mask_counts(L, samples, generator)  # [n]
    places = torch.rand(samples, L, generator=generator).argsort(-1).argsort(-1)
    log_p, _ = conditionals(model, prompt, answer, places < counts[:, None], batch)
    return (log_p.sum(-1) * L / counts).mean().item()


def mask_counts(L: int, samples: int, generator: torch.Generator) -> Tensor:
    """How many tokens each sample masks, int64 [n]: 1 .. L evenly spread, begun by chance.

    In whole numbers: LLaDA's get_log_likelihood rounds halves to even, so that some counts come
    more often than others and its estimate has another mean (docs/likelihood.md).
    """
    first = torch.randint(L, (), generator=generator)
    return (first + torch.arange(samples) * L // samples) % L + 1


def check(model, prompt: list[int], answer: list[int]) -> None:
    """Raise ValueError for ids that are none, and for what does not fit the model."""
    check_prompt(prompt, model.config, len(answer))
    require(len(answer) > 0, "answer", answer, "at least one token")
    check_prompt(answer, model.config, 0)


def checked_order(order, L: int) -> list[int]:
    require(sorted(order) == list(range(L)), "order", list(order), f"each of 0 .. {L - 1} once")
    return list(order)


# --- the command line ----------------------------------------------------------------------------


def read_order(text: str, L: int, seed: int) -> list[int]:
    """left, right, random, or places with commas between them."""
    named = {"left": list(range(L)), "right": list(range(L))[::-1]}
    named["random"] = torch.randperm(L, generator=torch.Generator().manual_seed(seed)).tolist()
    places = text.split(",")
    if text not in named and not all(place.isdecimal() and len(place) < 9 for place in places):
        valid = f"left, right, random, or each of 0 .. {L - 1} once, as in 2,0,1"
        raise ValueError(f"order is {text!r:.60}, expected {valid}")
    return named.get(text) or checked_order(list(map(int, places)), L)


def likelihood(args: Namespace) -> None:
    """Print both values, or what was asked for."""
    for name in ("prompt", "answer"):
        whole_text(getattr(args, name), name)
    require(args.samples >= 0, "samples", args.samples, "at least 1, or 0 for none")
    require(args.batch_size >= 1, "batch_size", args.batch_size, "at least 1")
    require(0 <= args.seed < 2**63, "seed", args.seed, "0 to 2**63 - 1")
    tokenizer, config, load = find_model(args)
    prompt, answer = encode(tokenizer, args.prompt, args.raw), tokenizer.encode(args.answer)
    check(Namespace(config=config), prompt, answer)
    order = read_order(args.order, len(answer), args.seed)
    model = load()
    use_threads(model)
    how = {"batch": args.batch_size}
    log_p, first = chain(model, prompt, answer, order, **how)
    write(f"order {args.order}: {log_p:.4f}{', each the likeliest in its turn' * first}")
    if args.samples:
        log_p = monte_carlo(model, prompt, answer, args.samples, args.seed, **how)
        write(f"Monte Carlo, {args.samples} samples: {log_p:.4f}")


def command_line() -> Parser:
    parser = Parser(prog="lab.likelihood", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--answer", required=True, help="the text whose probability is asked for")
    order = "in which it is written: left (default), right, random, or places as in 2,0,1"
    parser.add_argument("--order", default="left", help=order)
    samples = "of the estimate (default 128); 0 for none"
    parser.add_argument("--samples", type=int, default=128, help=samples)
    parser.add_argument("--seed", type=int, default=0, help="of what is masked (default 0)")
    batch = f"canvases in a forward (default {BATCH})"
    parser.add_argument("--batch-size", type=int, default=BATCH, help=batch)
    model = "a folder, a Hugging Face id, or oracle:NAME (default the embedded one)"
    parser.add_argument("--model", help=model)
    parser.add_argument("--adapter", help="a LoRA adapter in PEFT layout to merge")
    parser.add_argument("--raw", action="store_true", help="no chat template")
    parser.add_argument("--device", help="default the first there is of cuda, mps, cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default float32 on a CPU, else bfloat16")
    parser.set_defaults(strategy="llada", int8=False, offline=False, split=None)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = command_line()
    args = parser.parse_args(arguments)
    try:
        likelihood(args)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
