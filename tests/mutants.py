"""Mutants: does a test fail when the code is wrong? Each fault below is put into a copy of the
repository, whose tests must find it.

    python tests/mutants.py                the whole list: run by hand, never by CI
    python tests/mutants.py prism cache    those whose name or file holds one of these words
    python tests/mutants.py --check        only whether all patches apply, and every system's file has one
    python tests/mutants.py --control      the tests on a copy without a fault: they must pass
    python tests/mutants.py --whole        what survives the tests named for it meets all others, too

A mutant that survives is a missing test, or it computes the same: then it has no place in the list.
"""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "shared")

# A line `@ FILE: TESTS` names the file that the mutants below it change, and the test files that are
# likeliest to find them. A mutant is the name of its fault, then what the code says => what the
# fault says. The former must be there once; the shorter it is, the longer will the patch apply.
MUTANTS = r"""
@ dllm.py: test_dllm.py test_templates.py
loop: the cap of steps is hit one forward late
    self.nfe >= steps  =>  self.nfe > steps
loop: sampling ignores the seed
    manual_seed(s.settings.seed)  =>  manual_seed(0)
loop: the mask may be written
    logits[..., self.mask_id] = -inf  =>  logits[..., self.mask_id] += 0
loop: eos=suppress suppresses nothing
    self.eos == "suppress"  =>  self.eos == "suppressed"
loop: eos=defer defers nothing
    self.eos == "defer"  =>  self.eos == "deferred"
loop: eos=stop ends a row before its block is full
    ends.any(-1, keepdim=True) & ~waits  =>  ends.any(-1, keepdim=True)
loop: an EOS of the padding ends a row
    (self.is_end(self.x) & ~self.given)  =>  (self.is_end(self.x))
loop: the end of a turn is not suppressed
    logits[..., self.ends] = -inf  =>  logits[..., self.eos_id] = -inf
loop: the end of a turn ends nothing
    torch.isin(tokens, self.ends)  =>  (tokens == self.eos_id)
loop: a rule that reads what is said of written cells is told nothing of them
    = trait(own.rule, "masks_only") and not (  =>  = not (
loop: logits are of what is masked in the first row
    self.candidates(window).any(0)  =>  self.candidates(window)[0]
loop: a rule may edit what a template gave
    & ~s.given[live, span]  =>
loop: padding on the left is seen
    starts += [start] * n  =>  starts += [0] * n
guidance: the two halves are swapped
    guided, unguided = logits.chunk(2)  =>  unguided, guided = logits.chunk(2)
guidance: the scale is off by one
    (self.settings.cfg_scale + 1) * (guided  =>  self.settings.cfg_scale * (guided
counters: a finished row is still computed
    if len(rows) < len(told):  =>  if not rows:
counters: a forward counts for rows that wait
    s.forwards[live] += ran * candidates.any(-1)  =>  s.forwards[live] += ran
counters: what a template gave counts as written
    int((answer > 0).sum())  =>  len(answer)
counters: a token is written one forward too early
    masked_fill(commit, self.nfe)  =>  masked_fill(commit, self.nfe - 1)
refusals: a prompt that just fits
    len(row) + gen_length > most  =>  len(row) + gen_length >= most
refusals: steps that do not divide among the blocks
    and steps and steps % (G // L)  =>  and steps and steps % 1
@ dllm.py: systems/test_smoothing.py test_dllm.py
loop: a row that waits for the others grows older
    s.forwards[live] += ran * candidates.any(-1)  =>  s.forwards[live] += 1
@ dllm.py: test_layout.py
house: started as a program the decoder is loaded twice
    sys.modules["dllm"] = sys.modules[__name__]  =>  pass
@ strategies/__init__.py: test_strategies.py test_dllm.py systems/test_d2f.py systems/test_fast_dllm.py
loop: a block need not move where written cells were edited
    ~(commit & candidates).any(-1, keepdim=True)  =>  ~commit.any(-1, keepdim=True)
loop: ties go to the later position
    masked_fill(~candidates, inf).argsort(dim=-1, stable=True)  =>  masked_fill(~candidates, inf).flip(-1).argsort(dim=-1, stable=True).sub(candidates.shape[-1] - 1).neg()
loop: written cells are ranked among the masked
    doubt.masked_fill(~candidates, inf)  =>  doubt
loop: what a part inside another remembers is not forgotten
    part.inside = fresh(part.inside)  =>  pass
registry: the order is that of the imports
    STRATEGIES[key] = STRATEGIES.pop(key)  =>  pass
registry: only known files are found
    *sorted(there - set(KNOWN))  =>  *()
refusals: true where a number is asked for
    right &= isinstance(value, bool) == (self.kind is bool)  =>  right &= True
@ strategies/d2f.py: systems/test_fast_dllm.py systems/test_d2f.py
refusals: a stale cache under pipelined blocks
    trait(strategy.view, "settled") > 0  =>  False


@ strategies/llada.py: systems/test_llada.py test_goldens.py
llada: the remainder of the quota comes last
    (masks + window.remaining - 1) // window.remaining  =>  masks // window.remaining
llada: the narrowest margin is taken for the surest
    1 - scores.margin  =>  scores.margin
@ strategies/fast_dllm.py: systems/test_fast_dllm.py test_goldens.py
fast-dllm: a token exactly as sure as the threshold is left
    else sure >= threshold  =>  else sure > threshold
fast-dllm: the factor's rank is off by one
    factor / (place + 2)  =>  factor / (place + 1)
fast-dllm: only the first block refreshes the cache
    elif window.age == 0:  =>  elif window.start + window.age == s.prompt_length:
fast-dllm: a frozen prefix keeps the last block's masks
    first = window.final  =>  first = window.start
@ strategies/localleap.py: systems/test_localleap.py test_goldens.py
localleap: written cells are anchors, too
    anchors = candidates & (  =>  anchors = (
localleap: the neighbourhood is one wider
    reach = min(radius, anchors  =>  reach = min(radius + 1, anchors
@ strategies/streaming.py: systems/test_streaming.py test_goldens.py
streaming: the threshold has sunk in a block's first forward
    0.0 if window.age == 0 else confidence_alpha  =>  confidence_alpha
streaming: the kept suffix does not count among the masks
    (candidates.sum(-1, keepdim=True) + kept)  =>  (candidates.sum(-1, keepdim=True))
streaming: the last slot of the canvas is pruned
    visible[-1] = S - 1  =>  visible[-1] = near
@ strategies/d2f.py: systems/test_d2f.py test_goldens.py test_dllm.py
d2f: a block opens only beyond the threshold
    [:, 0] >= add  =>  [:, 0] > add
d2f: blocks open behind an EOS
    more &= ~s.ended().any(-1)  =>  more &= True
d2f: a block sees the next one
    return block[first:, None] >= block  =>  return block[first:, None] >= block - 1
d2f: a token exactly as sure as the threshold is written
    skip_threshold, strict=True  =>  skip_threshold, strict=False
@ strategies/ar.py: systems/test_ar.py test_dllm.py
ar: the prompt sees its own future
    slice(0, end), mask)  =>  slice(0, end))


@ strategies/hierarchy.py: systems/test_hierarchy.py
hierarchy: the best of a run is written however unsure it is
    & (scores.confidence > low)  =>
@ strategies/saber.py: systems/test_saber.py
saber: confidence is not lost since the forward before, but since the start
    torch.where(commit, sure, chosen), sure  =>  torch.where(commit, sure, chosen), self.last[live]
saber: the mean counts the forward, not the tokens so far
    chosen.sum(-1, keepdim=True) / counted  =>  chosen.sum(-1, keepdim=True) / candidates.shape[-1]
saber: a full block takes tokens back
    & (candidates & ~commit).any(-1, True)  =>
saber: what was taken back counts no more
    torch.where(commit, sure, chosen), sure  =>  torch.where(commit, sure, chosen).masked_fill(drop, 0), sure
@ strategies/conv.py: systems/test_conv.py
conv: what stands before the block does not count
    (half, 0), value=1.0  =>  (half, 0), value=0.0
conv: the weights are those of probabilities, which run into 1
    (scores.doubt + (1 - weight)) / weight  =>  1 / (scores.confidence * weight) - 1
@ strategies/editing.py: systems/test_editing.py
editing: a full block is edited
    ~candidates & moves & (  =>  ~candidates & (
editing: an end that is held back is written in place of another token
    edit &= scores.doubt < LARGEST  =>  pass
editing: the block before is edited in every forward
    if window.age == 0 and window.start  =>  if window.start
editing: the block before is edited only if it must move itself
    moves = window.must.any(-1, keepdim=True).expand_as(window.must)  =>  moves = window.must
@ strategies/credit.py: systems/test_credit.py
credit: credit does not fade
    self.beta * self.credit  =>  self.credit
credit: the mask earns credit
    s.forbid(logits)  =>  pass
@ strategies/smoothing.py: systems/test_smoothing.py
smoothing: the weight grows anew in each block
    self.growth * window.forwards  =>  self.growth * (window.forwards * 0 + (window.age or 0))
smoothing: only masks of the open block are softened
    wide = window.live, s.computed(window, at)  =>  wide = window.live, window
smoothing: one token is written where several are as sure
    (best - SLACK)  =>  (best + SLACK)
smoothing: a row is softened while it waits for others
    torch.where(moves, expected, self.soft[live, span])  =>  expected
smoothing: the threshold that sinks is that of one block
    sunk.repeat_interleave(lines // len(sunk))  =>  sunk
@ strategies/dinfer.py: systems/test_dinfer.py
dinfer: credit is earned by masks that are not softened
    beta, inside=forward)  =>  beta)
dinfer: the threshold does not sink
    sinking(high, fall)  =>  sinking(high, None)
@ strategies/dkv.py: systems/test_dkv.py
dkv: everything is recomputed in a block's first forward only
    window.age < 2 or  =>  window.age < 1 or
dkv: what was just written keeps the keys of its mask
    own = (s.x == s.mask_id) | (s.written == s.written.amax(-1, keepdim=True))  =>  own = (s.x == s.mask_id)
@ strategies/drafts.py: systems/test_drafts.py systems/test_freedave.py systems/test_swift.py systems/test_spiffy.py
freedave: the drafts are one too few
    for n in range(1, depth)  =>  for n in range(1, depth - 1)
freedave: a draft is accepted that is right somewhere
    now[:, None]).all(-1)  =>  now[:, None]).any(-1)
freedave: rows take each other's logits
    self.logits[live, known  =>  self.logits[live.flip(0), known
freedave: drafts write to the cache of what is decoded
    s.cache and s.cache.pick(s.lines(lines))  =>  s.cache
spiffy: a draft's second choice is its first
    token[..., min(j, choices - 1)]  =>  token[..., 0]
swift: the forward that drafts is not counted
    s.ran[s.live[miss]] += 1  =>  s.ran[s.live[miss]] += at.skip == ()
@ strategies/freedave.py: systems/test_freedave.py
freedave: a depth of one drafts, too
    chain(depth)  =>  chain(max(depth, 2))
@ strategies/swift.py: systems/test_swift.py
swift: the first layer is left out, too
    slice(1, -1, 2)  =>  slice(0, -1, 2)
@ strategies/spiffy.py: systems/test_spiffy.py
spiffy: the graph of a file is not used
    CALIBRATED if graph is None else  =>  CALIBRATED if True else
@ strategies/dllm_var.py: systems/test_dllm_var.py
dllm-var: the canvas grows on behind an EOS
    growing, serial, eos="stop"  =>  growing, serial, eos="fill"
@ strategies/learn2pd.py: systems/test_learn2pd.py
learn2pd: written cells count as unsure
    F.linear(scores.confidence, weight, bias)  =>  F.linear(torch.where(candidates, scores.confidence, 1.0), weight, bias)
learn2pd: the surest is written only where the filter accepts none
    return final | (rank(scores.doubt, candidates) == 0)  =>  return final
@ dllm.py: systems/test_learn2pd.py
learn2pd: a cell that a cache has not computed is unsure
    .scatter_(-1, holds, SURE)  =>
@ strategies/sparse.py: systems/test_sparse.py
sparse: what the first forward asks for decides
    if window.age == 0:  # the first forward does not show yet what matters  =>  if window.age == 1:
sparse: padding counts among the slots to share
    (~padding).sum(-1, keepdim=True)  =>  torch.ones_like(padding).sum(-1, keepdim=True)
sparse: what was asked for least is kept
    descending=True  =>  descending=False
sparse: all layers see what the first keeps
    kept, mask = layer.cache.kept, layer.at.mask  =>  kept, mask = layer.cache.kept.sort().values[:, :1].expand_as(layer.cache.kept), layer.at.mask
@ strategies/dllm_cache.py: systems/test_dllm_cache.py
dllm-cache: the prompt is computed once a block
    (forwards % p == 0,  =>  (window.age == 0,
dllm-cache: forwards are counted in each block anew
    if trait(s.strategy.rule, "quota") and not s.templated:  =>  if False:
dllm-cache: a share of none renews values
    transfer_ratio > 0)  =>  True)
dllm-cache: the tokens that changed least are renewed
    alike.argsort(stable=True)  =>  alike.argsort(stable=True, descending=True)
dllm-cache: a layer that leaves out the prompt chooses among its positions, too
    start = max(plan)[0] - first  =>  start = 0
dllm-cache: the values of a prompt that is left out are renewed
    cache.v[:, :, here] = v  =>  cache.v[:, :, at.query] = block.split(block.v_proj(block.attn_norm(h)), block.kv_heads)
dllm-cache: the first layer compares, too
    plan[0] = plan[0][0], G  =>  plan[0] = plan[0]
@ strategies/mars.py: systems/test_mars.py
mars: the pyramid stands on its head
    tiers * (layers - 1 - layer) // layers  =>  tiers * layer // layers
mars: the answer's intervals are the same in all layers
    intervals(steps, tiers, layers) for steps in own  =>  intervals(steps, 1 if i else tiers, layers) for i, steps in enumerate(own)
mars: prompt and answer have each other's intervals
    own = prompt_interval_steps, gen_interval_steps  =>  own = gen_interval_steps, prompt_interval_steps
@ strategies/d3llm.py: systems/test_d3llm.py
d3llm: a block is kept one forward too early
    (seen > delay)  =>  (seen >= delay)
d3llm: everything is recomputed in forwards 1, r + 1, 2r + 1
    (s.nfe + 1) % refresh == 0  =>  s.nfe % refresh == 0
d3llm: open blocks are finished behind an end
    cuts=True  =>  cuts=False
@ strategies/d2f.py: systems/test_d3llm.py
d3llm: a threshold of zero opens one block at first
    opened.clamp(min=1) if first_only else opened  =>  opened
@ strategies/guides.py: systems/test_guides.py
apd: the shares of the two models are swapped
    self.share * logits + (1 - self.share) * self.read(s, window, drafted)  =>  (1 - self.share) * logits + self.share * self.read(s, window, drafted)
apd: the guide does not draw by the noise of the draft
    target if noise is None else target + noise  =>  target
apd: one token too few is recomputed
    (low - recompute).clamp  =>  (low - recompute + 1).clamp
guided: one choice too many is accepted
    (better < self.top)  =>  (better <= self.top)
refusals: a guide beside a cache that asks for the age of a block
    in_flight(strategy)  =>  pass
@ strategies/guides.py: test_templates.py
guided: what a template gives behind a corrected token was read after its draft
    min(last, self.end)  =>  window.start - 1
@ strategies/apd.py: systems/test_apd.py
apd: the second choice of the mixture is accepted, too
    share, 1, correct  =>  share, 2, correct
@ strategies/guided.py: systems/test_guided.py
guided: the model has a share in what it is judged by
    guide, 0.0, top  =>  guide, 0.5, top
@ strategies/prism.py: systems/test_prism.py
prism: the longest answer scores worst
    / counted.sum(-1).clamp(min=1)  =>
prism: the width is rounded down
    math.ceil(  =>  math.floor(
prism: the surest tokens are masked again
    rank(-doubt[rows, block]  =>  rank(doubt[rows, block]
prism: a copy is as sure as the row whose place it takes
    doubt[rows] = doubt[parents]  =>  pass
@ strategies/prism.py: test_templates.py
prism: the search of a prompt ends in another's first block
    & (s.forwards[s.live] > 0)  =>
@ dllm.py: systems/test_prism.py
prism: an EOS that was deferred counts as unsure
    at, scores, candidates, commit, token  =>  at, ordered, candidates, commit, token
prism: a copy has the cache of another
    torch.searchsorted(self.live, parents)  =>  torch.searchsorted(self.live, rows)

@ strategies/eb.py: systems/test_eb.py test_goldens.py
eb: the largest entropy counts, too
    entropy.cumsum(-1) - entropy.cummax(-1).values  =>  entropy.cumsum(-1)
eb: the last entropy is left out, not the largest
    entropy.cummax(-1).values  =>  entropy
@ strategies/frechet.py: systems/test_frechet.py test_goldens.py
frechet: the last error counts once
    error.cumsum(-1) + error  =>  error.cumsum(-1)
@ strategies/klass.py: systems/test_klass.py test_goldens.py
klass: a block's first forward has none to compare with
    last, calm = self.last[live, span], self.calm[live, span]  =>  last, calm = self.last[live, span] * (window.age > 0), self.calm[live, span]
klass: a block that begins calm need not wait
    & (window.age >= history - 1)  =>
klass: the quota is that of what is left
    masks, steps = window.own.sum(-1, keepdim=True), window.age + window.remaining  =>  masks, steps = candidates.sum(-1, keepdim=True), max(1, window.remaining)
@ strategies/klass.py: test_dllm.py
klass: a row grows calm while it waits for others
    waits = ~s.candidates(window).any(-1, keepdim=True)  =>  waits = ~s.candidates(window).any(-1, keepdim=True) & False
@ strategies/wino.py: systems/test_wino.py test_goldens.py
wino: what is taken back is bounded by this forward's commits
    commit.sum(-1, keepdim=True), self.last[window.live]  =>  commit.sum(-1, keepdim=True), commit.sum(-1, keepdim=True)
wino: a shadow sees its own token
    ~shadow[:, None] | (query != query[:, None])  =>  ~shadow[:, None] | (query >= 0)
wino: the canvas sees the shadows
    torch.where(shadow, shadow[:, None],  =>  torch.where(shadow, shadow[:, None] | True,
@ strategies/dus.py: systems/test_dus.py
dus: a small last level stands alone
    last -= 1  =>  pass
@ strategies/spaced.py: systems/test_spaced.py test_goldens.py
spaced: the gap may be one
    .clamp(min=2)  =>  .clamp(min=1)
@ strategies/pc.py: systems/test_pc.py test_goldens.py
pc: rarity is not capped
    .clamp(max=alpha)  =>
pc: places are not weighed
    (-lam * place).exp()  =>  (0 * place).exp()
@ strategies/p2.py: systems/test_p2.py test_goldens.py
p2: what a template gave is counted
    own = window.own & candidates  =>  own = (window.own | True) & candidates
p2: written cells count as masked ones do
    torch.where(candidates, 1.0, eta)  =>  torch.where(candidates, 1.0, 1.0)
@ strategies/remdm.py: systems/test_remdm.py test_goldens.py
remdm: the extra forwards come one late
    again = range(first, first + self.extra)  =>  again = range(first + 1, first + 1 + self.extra)
remdm: the surest is taken back
    rank(-doubt, written)  =>  rank(doubt, written)
@ dllm.py: systems/test_remdm.py test_goldens.py
remdm: what is written and taken back at once is an error
    ~(commit | back).any(-1)  =>  ~commit.any(-1)
@ strategies/prophet.py: systems/test_prophet.py test_goldens.py
prophet: the share of the steps counts from 0
    share = (window.age + 1) /  =>  share = window.age /
prophet: the quota is that of the whole answer
    candidates & (number == first)  =>  candidates


@ strategies/blocks.py: systems/test_blocks.py
blocks: the prompt does not see all of itself
    "token": (P, 1)  =>  "token": (0, 1)
blocks: a part is kept as it was while its block was open
    min(begin(window.final), window.start - s.shift)  =>  min(window.final, window.start - s.shift)
@ strategies/sdar.py: systems/test_sdar.py
sdar: a finished token sees only what is before it
    blocks_of("block"  =>  blocks_of("token"
@ strategies/nbdiff.py: systems/test_nbdiff.py
nbdiff: the prompt sees all of itself
    blocks_of("causal"  =>  blocks_of("token"
@ strategies/dllm_var.py: test_templates.py
dllm-var: beside templates what was computed stays as it was
    0 if s.templated and window.age == 0 else window.final  =>  window.final
@ strategies/streaming.py: test_templates.py
streaming: beside templates what was computed stays as it was
    if s.templated and window.age == 0:  =>  if False:
@ strategies/smoothing.py: test_templates.py
smoothing: what another row has opened is softened in this one, too
    if window.age is None:  =>  if False:
@ strategies/rcd.py: systems/test_rcd.py
rcd: the surer a guess, the more of the mask it replaces
    return share *  =>  return (1 - share) *
rcd: the mask stays
    (mean - mask.float())  =>  mean
@ lab/rcd.py: test_finetune.py
rcd training: a block that is all masks carries a residual, too
    masked & ~masked.all(-1, keepdim=True)  =>  masked
@ lab/trajectory.py: test_finetune.py
trajectory: what was written first is masked
    .argsort(1, True)  =>  .argsort(1)
trajectory: wrong answers are learned from
    fits & right.all(1, keepdim=True)  =>  fits
@ lab/train.py: test_finetune.py
finetune: an EOS that is always masked weighs as what is masked at a ratio
    ratio.masked_fill(ends, 1.0), hidden  =>  ratio, hidden
@ strategies/fast_dllm_v2.py: systems/test_fast_dllm_v2.py
fast-dllm-v2: the last token of a sub-block decides what is computed
    s.masked()[..., 0]  =>  s.masked()[..., -1]
@ strategies/card.py: systems/test_card.py
card: the prompt sees all of itself
    block_mask(0, 1,  =>  block_mask(s.prompt_length, 1,
@ strategies/wedlm.py: systems/test_wedlm.py
wedlm: a mask sees only what is before it
    place = slots + at.stop * (s.x[s.live, : at.stop] == s.mask_id)  =>  place = slots.expand(len(s.live), -1)
wedlm: a token keeps the keys of its mask
    | (s.written == s.nfe)  =>  | torch.full_like(s.given, s.nfe == 0)
@ strategies/s2d2.py: systems/test_s2d2.py
s2d2: the token behind the accepted run is the draft's
    torch.where(wanted[:, None], told, token)  =>  token
s2d2: the masks behind the draft see each other
    alone = torch.eye(n, dtype=torch.bool, device=device)  =>  alone = torch.ones(n, n, dtype=torch.bool, device=device)
s2d2: what verifies costs nothing
    s.rows += ids.numel()  =>  pass


@ model.py: test_model.py test_dllm.py
model: positions count from where the query begins
    positions = self.indices(query)  =>  positions = torch.arange(Q, device=self.device)
model: the first token behind the padding is not seen
    >= start[:, None])  =>  > start[:, None])
model: a norm is scaled before it is rounded
    eps=self.eps).to(h.dtype) * self.weight  =>  eps=self.eps).mul(self.weight).to(h.dtype)
model: int8 has one step more than it can hold
    / 127  =>  / 128
model: attention reads what the slots held before
    cache.write(query, k, v, own)  =>  cache.each(torch.clone).write(query, k, v, own)
model: a row overwrites keys that are not its own
    elif own is None:  =>  elif True:
model: slots of each row's own are those of the first
    slots[rows, :, query] = new  =>  slots[rows, :, query[:1]] = new


@ kernels.py: test_kernels.py test_dllm.py
scores: noise is drawn in 32 bits
    else torch.float64  =>  else torch.float32
scores: a sampled token is as sure as the likeliest
    doubt if noise is None else against(chosen)  =>  doubt
scores: the best logit is not put back
    z.scatter_(-1, token, best)  =>  z.scatter_(-1, token, best - 1)
scores: of equal tokens the last is taken
    .argmax(-1)  # [N]  =>  .flip(-1).argmax(-1).sub(parts.shape[1] - 1).neg()
scores: what is asked for is computed again whenever it is read
    entropy = cached_property(  =>  entropy = property(
scores: entropy of what is forbidden is NaN
    best[:, None]).clamp(min=NEVER)  =>  best[:, None])
scores: bfloat16 is not widened
    z = z.float().contiguous()  =>  z = z.contiguous()


@ load_weights.py: test_load_weights.py test_checkpoint.py test_tiny.py
weights: an adapter of rsLoRA has LoRA's scale
    math.sqrt(rank) if config.get("use_rslora") else rank  =>  rank
weights: an adapter's key that nobody knows is ignored
    refuse(value and key not in LORA_KEYS  =>  refuse(value is True and key not in LORA_KEYS
weights: an index goes before the single file
    if index.is_file() and not (folder / names[0]).is_file():  =>  if index.is_file():
weights: of several end tokens the first fills
    i == given.get("pad_token_id")  =>  False
weights: what overflows in the dtype of the model is not seen
    if weight is not tensor or of:  =>  if False:


@ families.py: test_families.py test_load_weights.py
families: a key that nobody knows is ignored
    refuse(value, file, f"unknown key  =>  refuse(value is True, file, f"unknown key
families: LLaDA-MoE is what it calls itself
    refuse(looks or not known, file  =>  refuse(not known, file
families: what Dream's file leaves out is LLaDA's
    whole=True  =>  whole=False
@ strategies/llada.py: test_goldens.py systems/test_dream.py test_shift.py
dream: the refresh of a cache that leads is no step
    self.step.fill_(min(self.leads, window.remaining - 1))  =>  self.step.fill_(0)
dream: a step that writes nothing is run
    ((count > 0) & (number >= self.step[live]))  =>  (number >= self.step[live])
dream: masks are left behind the last step
    count[:, -1:] = masks  =>  pass
@ strategies/dream.py: systems/test_dream.py
dream: the token that passes top_p is left out
    before > top_p  =>  before + warm.softmax(-1) > top_p
@ dllm.py: test_shift.py test_goldens.py
dream: a refresh writes all that is sure
    cells[..., 1:] &= ~cells[..., :1]  =>  pass
dream: a refresh writes nothing where a block's first cell is given
    cells[..., 1:] &= ~cells[..., :1]  =>  cells[..., 1:] = False
@ strategies/d2f.py: test_shift.py test_goldens.py
dream: the row before a block whose past is cached is missing
    min(window.final, window.start - s.shift)  =>  window.final
@ checkpoint.py: test_families.py
checkpoint: a token that is added has another number
    refuse(found != number, file, other)  =>  pass
checkpoint: DiffuCoder's padding ends nothing
    if apart and pad not in (None, mask)  =>  if False
@ checkpoint.py: test_checkpoint.py test_load_weights.py
checkpoint: the chat template does not ask for an answer
    self.render(messages, True)  =>  self.render(messages, False)
checkpoint: a prompt is cut where the tokenizer's file says so
    self.encoder.no_truncation()  =>  pass
checkpoint: JSON in a template is made for HTML
    jinja.filters["tojson"] = tojson  =>  pass
checkpoint: the older file's special tokens win
    in ("special_tokens_map.json", "tokenizer_config.json")  =>  in ("tokenizer_config.json", "special_tokens_map.json")
checkpoint: the end of a turn is any token in it
    behind.lstrip().startswith(t.content)  =>  t.content in behind
checkpoint: NaN is a number
    parse_constant=no_number  =>  parse_constant=float
checkpoint: an end of turn is shown
    if i not in self.ends  =>  if i >= 0
checkpoint: a limit on memory stays
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))  =>  pass
checkpoint: a file's control characters reach the terminal
    c if c.isprintable() else "\ufffd"  =>  c


@ compiled.py: test_compiled.py
compiled: padding on the left is seen
    ids.new_zeros(len(lines)) if start is None else  =>  ids.new_zeros(len(lines)) if True else
compiled: two decodes at a time have one cache
    return Padded(self.model, batch, slots)  =>  return vars(self).setdefault(f"{batch} x {slots}", Padded(self.model, batch, slots))
compiled: compiling counts as decoding
    time.perf_counter() - self.compiling  =>  time.perf_counter()
@ padding.py: test_compiled.py
compiled: a shorter batch keeps the caches of its first rows
    rows = batch[spread(  =>  rows = torch.arange(len(batch))[spread(
compiled: a forward waits for the device to know its own shape
    else slice(0, slots)  =>  else slice(0, max(slots, int(query[-1]) + 1))
@ lab/likelihood.py: test_likelihood.py
likelihood: a token sees itself
    masked = turn >= torch  =>  masked = turn > torch
likelihood: the order is read the other way round
    turn = order.argsort()  =>  turn = order
likelihood: the mask has a share in p
    logits[..., mask_id] = -torch.inf  =>  logits[..., mask_id] += 0
likelihood: what is not masked counts, too
    own.masked_fill(~part, 0.0)  =>  own
likelihood: the sum is weighted by what is left
    log_p.sum(-1) * L / counts  =>  log_p.sum(-1) * L / (L - counts + 1)
likelihood: counts begin at the same place in every run
    (first + torch  =>  (0 * first + torch
@ lab/data.py: test_data.py
data: the first match counts
    for last in wanted.finditer(text):  =>  for last in list(wanted.finditer(text))[:1]:
data: a group is ignored
    next((group for group in last.groups() if group), last[0])  =>  last[0]
data: an answer is cut at one of several texts
    for end in filter(None, until):  =>  for end in until[:1]:
data: shots stand behind the question
    [*("\n".join(shot) for shot in self.shots), question]  =>  [question, *("\n".join(shot) for shot in self.shots)]
@ lab/figures.py: test_data.py test_compare.py
figures: McNemar's test of one side
    min(1.0, 2 * sum  =>  min(1.0, sum
figures: the values' quantiles instead of the mean's
    drawn.mean(-1).quantile  =>  drawn.flatten()[:9999].quantile
figures: the difference is to no other contender
    [a - b for a, b in zip(this, other)]  =>  [a - b for a, b in zip(this, this)]
@ lab/compare.py: test_data.py test_compare.py
compare: of a batch that was cut the whole is added again
    if (label, run["id"]) not in self.done  =>  if run["id"]
compare: another problem of the same id is taken for it
    if line and (line["prompt"], line["gold"]) != (prompt, item.gold):  =>  if False:
@ lab/journal.py: test_data.py test_batch.py
journal: a torn line stays
    os.truncate(self.path, self.whole or 0)  =>  os.truncate(self.path, self.path.stat().st_size)
journal: a line of other settings is taken
    if name != "settings" and was  =>  if name == "settings" and was
"""


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: list[str]  # files in tests/, the likeliest first

    def apply(self, folder: Path) -> None:
        """Put the fault into a copy; ValueError if it does not fit the code there."""
        source = (folder / self.file).read_text()
        if (times := source.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.file} has it {times} times, not once: {self.old}")
        source = source.replace(self.old, self.new)
        ast.parse(source)  # SyntaxError: every test would find that
        (folder / self.file).write_text(source)


def read(text: str) -> list[Mutant]:
    mutants, name, file, tests = [], "", "", ""
    for line in text.splitlines():
        if line.startswith("@ "):
            file, tests = line[2:].split(": ")
        elif line.startswith("    "):
            old, new = line[4:].split("  =>")
            mutants.append(Mutant(name, file, old, new.strip(), tests.split()))
        elif line:
            name = line
    return mutants


def check(mutants: list[Mutant]) -> None:
    """ValueError or SyntaxError unless all patches apply and every file of a strategy has one."""
    if not mutants:
        raise ValueError("no mutant has such a name")
    for mutant in mutants:
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary, mutant.file)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / mutant.file, copy)
            mutant.apply(Path(temporary))
    files = {file.relative_to(ROOT).as_posix() for file in ROOT.glob("strategies/*.py")}
    if without := files - {mutant.file for mutant in read(MUTANTS)}:
        raise ValueError(f"files without a mutant: {', '.join(sorted(without))}")


def first_failure(folder: Path, tests: list[str], limit: float) -> str:
    """The first test that fails in this folder, "" if none; "no end" after so many seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", *(f"tests/{name}" for name in tests)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return "no end"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with what the tests have started
            process.wait()
    if process.returncode == 0:
        return ""
    if failed := re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", output, re.MULTILINE):
        return failed[1]
    raise RuntimeError(f"pytest {' '.join(tests)} ends without a verdict: {output[-200:]}")


def judge(mutant: Mutant, limit: float, whole: bool) -> tuple[str, float]:
    """What kills a mutant, as `first_failure` says it, and after how many seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(ROOT, Path(temporary, "copy"), ignore=LEFT_OUT))
        mutant.apply(folder)
        killer = first_failure(folder, mutant.tests, limit)
        if whole and not killer:
            every = {file.name for file in (folder / "tests").glob("test_*.py")}
            killer = first_failure(folder, sorted(every.difference(mutant.tests)), 4 * limit)
    return killer, time.perf_counter() - began


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", help="of names or files; default all")
    for flag in ("--check", "--control", "--whole"):
        parser.add_argument(flag, action="store_true", help="see above")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="mutants at a time")
    parser.add_argument("--limit", type=float, default=600, help="seconds for its tests")
    args = parser.parse_args()
    named = lambda m: any(word in f"{m.name} {m.file}" for word in args.words)  # noqa: E731
    mutants = [mutant for mutant in read(MUTANTS) if not args.words or named(mutant)]
    try:
        check(mutants)
    except (OSError, ValueError, SyntaxError) as error:
        parser.error(str(error))
    if args.check:
        return print(len(mutants), "patches apply")
    if args.control:
        tests = sorted({name for mutant in mutants for name in mutant.tests})
        text = (ROOT / "dllm.py").read_text()
        nothing = Mutant("no fault", "dllm.py", text, text, tests)
        return print(judge(nothing, 8 * args.limit, False)[0] or "they pass")
    fates = []
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda mutant: judge(mutant, args.limit, args.whole), mutants)
        for mutant, (killer, seconds) in zip(mutants, results):
            fates.append("hung" if killer == "no end" else "killed" if killer else "SURVIVED")
            print(f"{fates[-1]:8} {seconds:4.0f} s  {mutant.name}  {killer}", flush=True)
    counts = (f"{fates.count(fate)} {fate}" for fate in ("killed", "hung", "SURVIVED"))
    print(f"{len(fates)} mutants:", ", ".join(counts))


if __name__ == "__main__":
    main()
