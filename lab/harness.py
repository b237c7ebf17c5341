"""The decoder as a model of lm-evaluation-harness 0.4.13, which has the papers' tasks:

    python -m lab.harness --model dllm --model_args decoder=fast-dllm:cache=dual --tasks gsm8k

Every other flag is the harness's own. The decoder is named as a contender of `lab.bench compare`
is (lab/contenders.py). An optional extra: pip install lm_eval==0.4.13, which brings no torch.

Left out on purpose: batch_size=auto, several processes, texts longer than the model.
"""

import json
import sys
from argparse import Namespace
from itertools import groupby

import torch
from tqdm import tqdm

from dllm import StepLimit, check_prompt
from lab import likelihood
from lab.command_line import near
from lab.compare import answer
from lab.contenders import chosen_contenders, maker, opened, planned, weights_of
from lab.data import Item, batches, cut
from lab.journal import Journal
from load_weights import DTYPES
from strategies import require

try:
    from lm_eval._cli import HarnessCLI
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import setup_logging
except ImportError:
    if __name__ != "__main__":
        raise
    print("lab.harness: this needs pip install lm_eval==0.4.13", file=sys.stderr)
    sys.exit(2)

GIVEN = {  # of --model_args, with their defaults
    "decoder": "fast-dllm",
    "model": None,  # a folder or a Hugging Face id; by default the embedded one
    "adapter": None,
    "dtype": None,
    "device": None,
    "batch_size": 1,
    "max_batch_size": None,  # the harness passes it on
    "likelihood": "chain",  # or monte-carlo, LLaDA's estimate, of so many samples:
    "samples": 128,
    "prefix": "",  # what stands before each prompt, such as a begin-of-text that D2F doubles
    "stats": None,  # a file of JSON lines: what each request took
}
FEW = 256  # tokens of an answer where neither the decoder nor the task says how many


@register_model("dllm")
class Decoder(LM):
    """A model and a decoder with its settings."""

    def __init__(self, **given):
        super().__init__()
        for name in given:
            if name not in GIVEN:
                known = f"it takes {', '.join(GIVEN)}{near(name, GIVEN)}"
                raise ValueError(f"model dllm has no argument {name!r:.60}: {known}")
        self.args = args = Namespace(**GIVEN | given, sweep=False, eos="own", gen_length=FEW)
        args.strategies = str(args.decoder)
        args.device = None if args.device == "cuda:0" else args.device  # which it passes by default
        for name in ("batch_size", "samples"):
            value = getattr(args, name)
            number = int(value) if str(value).isdecimal() else 0
            require(number > 0, name, value, "a whole number of at least 1")
            setattr(args, name, number)
        ways = ("chain", "monte-carlo")
        require(args.likelihood in ways, "likelihood", args.likelihood, " or ".join(ways))
        require(args.dtype in (None, *DTYPES), "dtype", args.dtype, f"one of {', '.join(DTYPES)}")
        self.contender = chosen_contenders(args)[0][0]
        by = {name: getattr(args, name) for name in ("likelihood", "samples", "prefix")}
        self.made_by = maker(args, self.contender, by)
        self.journal = Journal(str(args.stats), "request", "stats") if args.stats else None
        if self.journal:
            self.journal.read(("task", "rows"))
            self.journal.begin()
        self.model, self.tokenizer, self.settings = opened(self.contender, args)

    # --- what the harness asks --------------------------------------------------------------------

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Decode all, those of one length together; an answer ends at an end token, or `until`."""
        jobs = [(self.settings_for(request.args[1]), n) for n, request in enumerate(requests)]
        items = [self.item(request, n) for n, request in enumerate(requests)]
        for settings, n in jobs:  # all, before any work
            ids = self.tokenizer.encode(items[n].prompt)
            check_prompt(ids, self.model.config, settings["gen_length"])
        texts = [""] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="decode")
        key = lambda job: json.dumps(job[0], sort_keys=True, default=str)
        order = lambda job: (key(job), len(items[job[1]].prompt))
        for _, group in groupby(sorted(jobs, key=order), key):
            for chosen in batches(iter(group), self.args.batch_size):
                c, settings = self.contender, chosen[0][0]
                asked = [items[n] for _, n in chosen]
                runs = answer(self.model, self.tokenizer, asked, c.strategy, c.generate, **settings)
                for run in runs:
                    texts[run["id"]] = run["text"]
                    self.done(requests[run["id"]], run["text"], run)
                bar.update(len(chosen))
        return texts

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p, whether greedy decoding from left to right writes it; no by Monte Carlo)."""
        pairs = [self.pair(*request.args) for request in requests]
        return self.judged(requests, pairs, disable_tqdm)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        pairs = [self.pair("", *request.args) for request in requests]
        return [log_p for log_p, _ in self.judged(requests, pairs, disable_tqdm)]

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        """The text of some turns; without a prompt to answer, the last of them goes on."""
        text = self.tokenizer.render(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        before, last, _ = text.rpartition(chat_history[-1]["content"].strip())
        return before + last

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.tokenizer.template or "" if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        return str(weights_of(self.contender, self.args)[0]).replace("/", "__")

    def get_model_info(self) -> dict:
        """What the harness writes into its results."""
        return {"decoder": self.made_by}

    def set_cache_hook(self, cache_hook) -> None:
        """Refuse answers of another decoder: the harness finds them by their request alone."""
        if (kept := cache_hook.dbdict) is not None:
            was = kept.get("made by", None if len(kept) else self.made_by)
            differs = [
                name for name, value in self.made_by.items() if (was or {}).get(name) != value
            ]
            if differs:
                theirs = "another model" if was is None else f"another {differs[0]}"
                raise ValueError(f"--use_cache holds answers of {theirs}: give another name")
            kept["made by"] = self.made_by
        super().set_cache_hook(cache_hook)

    # --- how it is answered -----------------------------------------------------------------------

    def settings_for(self, asked: dict) -> dict:
        """The decoder's settings with the length, and the temperature, that a task asks for where
        the decoder string names none; whole blocks."""
        own = dict(self.settings)
        if "gen_length" not in self.contender.settings:
            most = asked.get("max_gen_toks", FEW)
            length = own.get("block_length") or planned(self.args, self.contender)[0].block_length
            own["gen_length"] = -(-most // (length or most)) * (length or most)
        if asked.get("do_sample") and "temperature" not in self.contender.settings:
            own["temperature"] = float(asked.get("temperature", 1.0))
        return own

    def item(self, request, number: int) -> Item:
        context, asked = request.args
        until = asked.get("until") or []
        until = [until] if isinstance(until, str) else until
        judge = lambda text: {"text": cut(text, until)}
        return Item(number, self.args.prefix + context, None, judge)

    def pair(self, context: str, text: str) -> tuple[list[int], list[int]]:
        """A context and what goes on from it; spaces between them belong to the latter."""
        context = self.args.prefix + context
        begins = len(context.rstrip())
        whole = self.tokenizer.encode(context + text)
        known = len(self.tokenizer.encode(context[:begins]))
        if known:
            return whole[:known], whole[known:]
        first = self.tokenizer.names.get("bos_token")
        return self.tokenizer.encode(first) if first else [self.model.config.eos_token_id], whole

    def judged(self, requests, pairs, disable_tqdm: bool) -> list[tuple[float, bool]]:
        for pair in pairs:  # all, before any work
            likelihood.check(self.model, *pair)
        found, how = [], {"batch": max(self.args.batch_size, likelihood.BATCH)}
        for request, pair in zip(tqdm(requests, disable=disable_tqdm), pairs):
            if self.args.likelihood == "chain":
                found.append(likelihood.chain(self.model, *pair, **how))
            else:
                log_p = likelihood.monte_carlo(self.model, *pair, self.args.samples, **how)
                found.append((log_p, False))
            length = len(pair[1])
            forwards = length if self.args.likelihood == "chain" else self.args.samples
            rows = forwards * (len(pair[0]) + length)
            log_p = found[-1] if request.request_type == "loglikelihood" else found[-1][0]
            self.done(request, log_p, {"tokens": length, "forwards": forwards, "rows": rows})
        return found

    def done(self, request, found, took: dict) -> None:
        """Tell the harness's cache, and the file of statistics."""
        self.cache_hook.add_partial(request.request_type, request.args, found)
        if self.journal:
            line = {"id": request.idx, "task": request.task_name, "doc": request.doc_id}
            line |= {"kind": request.request_type, "decoder": self.contender.label}
            names = ("tokens", "forwards", "rows", "seconds")
            self.journal.add([line | {name: took[name] for name in names if name in took}])


def main(arguments: list[str] | None = None) -> None:
    setup_logging()
    sys.argv[1:] = sys.argv[1:] if arguments is None else arguments
    harness = HarnessCLI()
    args = harness.parse_args()
    try:
        harness.execute(args)
    except (ValueError, StepLimit, OSError, torch.OutOfMemoryError) as error:
        print(f"lab.harness: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
