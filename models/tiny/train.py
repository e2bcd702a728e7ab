#!/usr/bin/env python3
"""Trains the `tiny` model of this folder, from public text to exported files.

    python3 train.py WORKDIR [STAGE ...]

Stages, in order (all of them without an argument): fetch, corpus, tokenizer,
train, export. WORKDIR takes the downloads, the clean text, the tokens and the
checkpoint; only the export stage writes next to this script. `fetch` needs
apt-get and dpkg-deb (Debian 12); the others need torch, numpy, safetensors and
tokenizers. Everything random comes from SEED. See README.md for the sources
and for what was measured.
"""
import hashlib
import html.parser
import json
import math
import os
import random
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 20240607

# ---------------------------------------------------------------- the sources
# package -> (version used, cap in characters, how to read it, path regex)
M = 1_000_000
SOURCES = {
    "apache2-doc": ("2.4.71-1~deb12u1", 0.6 * M, "html", r"\.html(\.en)?$"),
    "argyll-doc": ("2.3.1+repack-1.1", 0.5 * M, "html", r"\.html$"),
    "autoconf-doc": ("2.71-3", 0.3 * M, "info", r"\.info"),
    "buildbot-doc": ("3.7.0-2", 0.2 * M, "html", r"\.html$"),
    "cmake-doc": ("3.25.1-1", 0.2 * M, "html", r"(manual|guide)/.*\.html$"),
    "debian-edu-doc-en": ("2.12.23~deb12u1", 0.3 * M, "html", r"\.html$"),
    "debian-faq": ("11.1", 0.3 * M, "html", r"en\.html$|/[a-z-]+\.html$"),
    "debian-handbook": ("11.20220922", 1.2 * M, "html", r"/en-US/.*\.html$"),
    "debian-history": ("2.28", 0.3 * M, "html", r"en\.html$"),
    "debian-policy": ("4.6.2.0", 0.5 * M, "html", r"\.html$"),
    "debian-reference-en": ("2.100", 0.4 * M, "html", r"en\.html$"),
    "developers-reference": ("12.18", 0.4 * M, "html", r"\.html$"),
    "dict-foldoc": ("20230119-1", 1.2 * M, "dict", r"\.dict\.dz$"),
    "erlang-doc": ("1:25.2.3+dfsg-1+deb12u4", 0.3 * M, "html", r"guide.*\.html$|efficiency.*\.html$"),
    "git-doc": ("1:2.39.5-0+deb12u3", 0.8 * M, "html", r"\.html$"),
    "gnuastro": ("0.19-1+b2", 1.2 * M, "info", r"\.info"),
    "gnugo": ("3.8-11", 0.2 * M, "info", r"\.info"),
    "guile-3.0-doc": ("3.0.8-2", 0.3 * M, "info", r"\.info"),
    "harden-doc": ("3.19+nmu1", 0.6 * M, "html", r"/en[-A-Z]*/.*\.html$"),
    "installation-guide-amd64": ("20230508+deb12u1", 0.4 * M, "html", r"/en/.*\.html$"),
    "jargon-text": ("4.4.7-4.1", 0.8 * M, "info", r"jargon.*\.txt"),
    "linux-doc-6.1": ("6.1.192-2", 1.0 * M, "html", r"html/(admin-guide|process|scheduler|timers|doc-guide|mm|locking|RCU)/.*\.html$"),
    "mailman3-doc": ("3.3.8-2~deb12u2", 0.2 * M, "html", r"\.html$"),
    "ntpsec-doc": ("1.2.2+dfsg1-1+deb12u1", 0.6 * M, "html", r"\.html$"),
    "perl-doc": ("5.36.0-7+deb12u4", 1.2 * M, "pod", r"/perl(?!\d)(?!api|uniprops|toc|delta)[a-z]*\.pod$"),
    "postfix-doc": ("3.7.11-0+deb12u1", 0.3 * M, "html", r"README\.html$"),
    "postgresql-doc-15": ("15.20-0+deb12u1", 1.3 * M, "html", r"html/(?!release|sql-|catalog-|view-).*\.html$"),
    "python-astropy-doc": ("5.2.1-2+deb12u1", 0.3 * M, "html", r"html/(?!api|whatsnew|_modules|changelog).*\.html$"),
    "python-django-doc": ("3:3.2.25-0+deb12u7", 0.8 * M, "html", r"html/(?!releases|_modules|genindex|ref/contrib/gis).*\.html$"),
    "python-pandas-doc": ("1.5.3+dfsg-2", 0.5 * M, "html", r"(user_guide|getting_started|development)/.*\.html$"),
    "python-pytest-doc": ("7.2.1-2", 0.2 * M, "html", r"\.html$"),
    "python-sklearn-doc": ("1.2.1+dfsg-1", 1.0 * M, "html", r"(modules/[a-z_]+|tutorial/.*|developers/.*|common_pitfalls|auto_examples/.*)\.html$"),
    "python-statsmodels-doc": ("0.13.5+dfsg-7", 0.3 * M, "html", r"html/[a-z_]+\.html$|examples/.*\.html$"),
    "python3.11-doc": ("3.11.2-6+deb12u9", 1.6 * M, "html", r"html/(tutorial|howto|whatsnew|faq|reference|using|extending|library|installing|distributing)/.*\.html$"),
    "r-cran-janeaustenr": ("1.0.0-1", 2.2 * M, "rdb", r"Rdata\.rdb$|janeaustenr\.rdb$"),
    "r-cran-tokenizers": ("0.3.0-1", 1.0 * M, "rdb", r"Rdata\.rdb$"),
    "racket-doc": ("8.7+dfsg1-1", 0.5 * M, "html", r"(guide|quick|more|continue|plot|style|how-to[a-z-]*)/.*\.html$"),
    "rust-doc": ("1.63.0+dfsg1-2", 1.6 * M, "html", r"html/(book|nomicon|reference|rust-by-example|edition-guide|cargo|embedded-book|rustc|rustdoc|rustc-dev-guide)/.*\.html$"),
    "sphinx-doc": ("5.3.0-4", 0.3 * M, "html", r"\.html$"),
    "sqlite3-doc": ("3.40.1-2+deb12u2", 1.8 * M, "html", r"\.html$"),
    "subversion": ("1.14.2-4+deb12u1", 0.1 * M, "html", r"\.html$"),
    "systemtap-doc": ("4.8-2", 0.2 * M, "html", r"\.html$"),
    "twisted-doc": ("22.4.0-4+deb12u1", 0.4 * M, "html", r"(howto|core|web|names|mail|conch)[^_]*\.html$"),
    "units": ("2.22-2", 0.2 * M, "info", r"\.info"),
    "valgrind": ("1:3.19.0-1", 0.7 * M, "html", r"\.html$"),
}


def stage_fetch(work):
    debs = work / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    have = {p.name.split("_")[0] for p in debs.glob("*.deb")}
    want = sorted(set(SOURCES) - have)
    if want:
        pinned = [f"{p}={SOURCES[p][0]}" for p in want]
        if subprocess.run(["apt-get", "download", *pinned], cwd=debs).returncode:
            # A pinned version has left the archive: take today's.
            subprocess.run(["apt-get", "download", *want], cwd=debs, check=True)
    for deb in sorted(debs.glob("*.deb")):
        name, version = deb.name.split("_")[:2]
        if name in SOURCES:
            print("source", name, version.replace("%3a", ":"))
            out = work / "x" / name
            if not out.exists():
                out.mkdir(parents=True)
                subprocess.run(["dpkg-deb", "-x", deb, out], check=True)


# ------------------------------------------------------- from files to prose
class Prose(html.parser.HTMLParser):
    """The text of the p, li, dd and blockquote elements, code blocks left out."""

    SKIP = {"script", "style", "pre", "nav", "table", "footer", "header", "title", "svg", "math"}
    BLOCK = {"p", "li", "dd", "dt", "div", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "ul",
             "ol", "dl", "section", "body", "td", "tr", "br"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.skip, self.out, self.cur = 0, [], []

    def flush(self):
        text = "".join(self.cur)
        self.cur = []
        if text.strip():
            self.out.append(text)

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIP:
            self.flush()
            self.skip += 1
        elif tag in self.BLOCK and tag != "br":
            self.flush()

    def handle_endtag(self, tag):
        if tag in self.SKIP:
            self.skip = max(0, self.skip - 1)
        elif tag in self.BLOCK and tag != "br":
            self.flush()

    def handle_data(self, data):
        if not self.skip:
            self.cur.append(data)


def read_html(raw):
    text = raw.decode("utf-8", "ignore")
    p = Prose()
    p.feed(re.sub(r"(?is)<(script|style|svg)\b.*?</\1>", " ", text))
    p.flush()
    return [p.out]


def read_info(raw):
    text = raw.decode("utf-8", "ignore")
    docs = []
    for node in re.split(r"\n\x1f", text) if "\x1f" in text else [text]:
        docs.append(re.split(r"\n\s*\n", node))
    if len(docs) == 1:
        return docs
    # Join neighbouring nodes, they are short.
    return [sum(docs[i:i + 8], []) for i in range(0, len(docs), 8)]


def read_pod(raw):
    text = raw.decode("utf-8", "ignore")
    for _ in range(4):
        text = re.sub(r"\b[LBICFSXEZ]<(?:[^<>|]*\|)?([^<>]*)>", r"\1", text)
    return [[p for p in re.split(r"\n\s*\n", text) if not re.match(r"[\s=]", p)]]


def read_dict(raw):
    text = re.sub(r"[{}]|<[^<>]*>", "", raw.decode("utf-8", "ignore"))
    entries = re.split(r"\n(?=\S)", text)
    paras = [p for e in entries for p in re.split(r"\n\s*\n", e.split("\n", 1)[-1])]
    return [paras[i:i + 60] for i in range(0, len(paras), 60)]


def read_rdb(raw):
    """The character vectors of an R lazy-load database, line by line."""
    docs, pos = [], 0
    while pos + 4 < len(raw):
        try:
            d = zlib.decompressobj()
            blob = d.decompress(raw[pos + 4:])
            used = len(raw) - pos - 4 - len(d.unused_data)
        except zlib.error:
            pos += 1
            continue
        pos += 4 + used
        lines, at = [], 0
        for m in re.finditer(rb"\x00[\x00\x04][\x00\x20\x80]\x09(....)", blob, re.S):
            if m.start() < at:
                continue
            n = int.from_bytes(m.group(1), "big")
            if n > 100_000:  # a whole book as one string
                book = blob[m.end():m.end() + n].decode("utf-8", "ignore").replace("\r", "")
                paras = re.split(r"\n\s*\n", book.split("*** START", 1)[-1].split("*** END", 1)[0])
                docs += [paras[i:i + 80] for i in range(0, len(paras), 80)]
                at = m.end() + n
            elif n <= 4000:
                lines.append(blob[m.end():m.end() + n].decode("utf-8", "ignore"))
                at = m.end() + n
        if len(lines) > 100:
            paras = re.split(r"\n\s*\n", "\n".join(lines)) if "" in lines else lines
            docs += [paras[i:i + 80] for i in range(0, len(paras), 80)]
    return docs


READERS = {"html": read_html, "info": read_info, "pod": read_pod, "dict": read_dict, "rdb": read_rdb}
PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-",
                       "\u2014": " - ", "\u2026": "...", "\u00a0": " ", "\u2010": "-", "\u2011": "-",
                       "\u00b6": "", "\u200b": "", "`": "'"})
COMMON = set("the of and to a in is that it for as with be on this are by an or not which from at "
             "was have but can you if will has all when its one they he she his her their may".split())


def clean(par):
    """The paragraph as one line of plain prose, or None."""
    t = re.sub(r"\s+", " ", par.translate(PLAIN)).strip()
    t = re.sub(r"\[\d+\]", "", t).replace("''", "'").replace("_", "" if t.count("_") > 1 and " _" in t else "_")
    t = re.sub(r" +([,.;:!?])(?= |$)", r"\1", t)
    if not 80 <= len(t) <= 4000 or not re.search(r"""[.!?]["')]*$""", t) or not t[0].isupper() and t[0] != '"':
        return None
    words = re.findall(r"[A-Za-z']+", t)
    if len(words) < 14 or re.search(r"https?:|www\.|[{}<>\\|=@#$~^]|\.html|--\w", t):
        return None
    letters = sum(c.isalpha() and c.isascii() or c in " ,.'" for c in t)
    common = sum(w.lower() in COMMON for w in words)
    if letters < 0.945 * len(t) or common < 0.28 * len(words) or not t.isascii():
        return None
    return t


def stage_corpus(work):
    rng = random.Random(SEED)
    seen, docs, report = set(), [], {}
    for name, (_, cap, kind, pattern) in SOURCES.items():
        paths = sorted(p for p in (work / "x" / name).rglob("*")
                       if p.is_file() and not p.is_symlink()
                       and re.search(pattern, re.sub(r"\.gz$", "", str(p.relative_to(work / "x" / name)))))
        found = []
        for p in paths:
            raw = p.read_bytes()
            if raw[:2] == b"\x1f\x8b":
                raw = zlib.decompressobj(31).decompress(raw)
            for paras in READERS[kind](raw):
                keep = []
                for t in filter(None, map(clean, paras)):
                    key = hashlib.blake2b(t[:120].encode(), digest_size=8).digest()
                    if key not in seen:
                        seen.add(key)
                        keep.append(t)
                if sum(map(len, keep)) >= 300:
                    found.append("\n\n".join(keep))
        rng.shuffle(found)
        size, kept = 0, 0
        for d in found:
            if size < cap:
                docs.append(d)
                size, kept = size + len(d), kept + 1
        report[name] = size
        print(f"{name:28} {len(paths):6} files {kept:6} documents {size:9} characters")
    rng.shuffle(docs)
    (work / "corpus.json").write_text(json.dumps(docs))
    print(f"total {sum(report.values())} characters, {len(docs)} documents")


# --------------------------------------------------------------- the tokenizer
VOCAB, EOS = 2048, "<|endoftext|>"


def stage_tokenizer(work):
    import numpy as np
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    docs = json.loads((work / "corpus.json").read_text())
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOS], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    assert tok.get_vocab_size() == VOCAB
    tok.save(str(work / "tokenizer.json"))
    eos, ids = tok.token_to_id(EOS), []
    for e in tok.encode_batch(docs):
        ids += e.ids + [eos]
    np.save(work / "tokens.npy", np.array(ids, dtype=np.uint16))
    print(f"{len(ids)} tokens, {sum(map(len, docs)) / len(ids):.2f} characters a token")


# ------------------------------------------------------------------- the model
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": 1024,
    "max_window_layers": 4,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}

# Steps of TOKENS tokens each, at a window length drawn for each step. The learning rate warms
# up, stays, and falls along half a cosine over the last COOL steps.
STEPS, TOKENS, WARMUP, COOL = 600, 4096, 50, 150
LENGTHS, ODDS = (256, 512, 1024), (0.45, 0.45, 0.10)
LR_MUON, LR_ADAM, LR_END, DECAY = 0.02, 3e-3, 0.02, 0.05
RANKS = 2  # processes of one thread each; each takes its share of every step's windows


def build():
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    c = CONFIG
    H, NH, NKV, D = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

    class Norm(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(n))

        def forward(self, x):
            y = x.float()
            return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"])).type_as(x) * self.weight

    def linear(i, o):
        return nn.Linear(i, o, bias=False)

    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj = linear(H, NH * D), linear(H, NKV * D)
            self.v_proj, self.o_proj = linear(H, NKV * D), linear(NH * D, H)
            self.q_norm, self.k_norm = Norm(D), Norm(D)

        def forward(self, x, cos, sin):
            B, T, _ = x.shape
            q = self.q_norm(self.q_proj(x).view(B, T, NH, D)).transpose(1, 2)
            k = self.k_norm(self.k_proj(x).view(B, T, NKV, D)).transpose(1, 2)
            v = self.v_proj(x).view(B, T, NKV, D).transpose(1, 2)
            q, k = rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v)
            k, v = (t.repeat_interleave(NH // NKV, 1) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.o_proj(y.transpose(1, 2).reshape(B, T, NH * D))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            n = c["intermediate_size"]
            self.gate_proj, self.up_proj, self.down_proj = linear(H, n), linear(H, n), linear(n, H)

        def forward(self, x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.self_attn, self.mlp = Attention(), Mlp()
            self.input_layernorm, self.post_attention_layernorm = Norm(H), Norm(H)

        def forward(self, x, cos, sin):
            x = x + self.self_attn(self.input_layernorm(x), cos, sin)
            return x + self.mlp(self.post_attention_layernorm(x))

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(VOCAB, H)
            self.layers = nn.ModuleList(Layer() for _ in range(c["num_hidden_layers"]))
            self.norm = Norm(H)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Inner()
            inv = c["rope_theta"] ** (-torch.arange(0, D, 2).float() / D)
            t = torch.outer(torch.arange(c["max_position_embeddings"]).float(), inv)
            t = torch.cat((t, t), -1)
            self.register_buffer("cos", t.cos(), persistent=False)
            self.register_buffer("sin", t.sin(), persistent=False)
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    std = 0.02 if "embed" in name else p.shape[1] ** -0.5 * 0.6
                    if name.endswith(("o_proj.weight", "down_proj.weight")):
                        std /= math.sqrt(2 * c["num_hidden_layers"])
                    nn.init.normal_(p, std=std)

        def forward(self, ids, targets=None):
            T = ids.shape[1]
            x = self.model.embed_tokens(ids)
            for layer in self.model.layers:
                x = layer(x, self.cos[:T], self.sin[:T])
            logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight)
            if targets is None:
                return logits
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    torch.manual_seed(SEED)
    return Model()


def rate(step, steps):
    fall = max(0.0, (step + 1 - (steps - COOL)) / COOL)
    return min(1.0, (step + 1) / WARMUP) * (LR_END + (1 - LR_END) * 0.5 * (1 + math.cos(math.pi * fall)))


def orthogonal(m):
    """Muon's update: `m` with its singular values brought near one (five Newton-Schulz steps)."""
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    x = x.T if m.shape[0] > m.shape[1] else x
    return x * max(1.0, m.shape[0] / m.shape[1]) ** 0.5


def stage_train(work):
    import torch.multiprocessing as mp
    mp.spawn(train_rank, args=(work, STEPS), nprocs=RANKS)


def train_rank(rank, work, steps):
    import numpy as np
    import torch
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{work.resolve()}/rendezvous-{os.getppid()}",
                            rank=rank, world_size=RANKS)
    ids = torch.from_numpy(np.load(work / "tokens.npy").astype(np.int64))
    model = build()
    # The matrices of the layers are trained by Muon, the rest by AdamW. The gradients, momenta
    # and updates of the matrices lie in flat vectors, so that one all-reduce moves them all.
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    total = sum(p.numel() for p in matrices)
    flat = torch.zeros(total + sum(p.numel() for p in others))
    momentum, update, at, slices = torch.zeros(total), torch.zeros(total), 0, []
    for p in matrices + others:
        slices.append(slice(at, at + p.numel()))
        p.grad = flat[slices[-1]].view_as(p)
        at += p.numel()
    opt = torch.optim.AdamW(others, weight_decay=0.0, lr=LR_ADAM, betas=(0.9, 0.98), eps=1e-9, fused=True)

    @torch.no_grad()
    def muon(lr):
        momentum.mul_(0.95).add_(flat[:total])
        update.zero_()
        for i, p in enumerate(matrices):
            if i % RANKS == rank:
                at = slices[i]
                update[at] = orthogonal((momentum[at] * 0.95 + flat[at]).view_as(p)).flatten()
        dist.all_reduce(update)
        for i, p in enumerate(matrices):
            p.mul_(1 - lr * DECAY).add_(update[slices[i]].view_as(p), alpha=-lr)

    rng = np.random.default_rng(SEED)
    # Windows are dealt from a shuffled deck of 256-token slots; a longer window stands for the
    # slots it covers. Every rank deals the same cards and keeps its own.
    deck, used, start, losses = [], 0, time.time(), []
    for step in range(steps):
        T = int(rng.choice(LENGTHS, p=ODDS))
        offs = []
        while len(offs) < TOKENS // T:
            if not len(deck):
                used += 1
                deck = rng.permutation((len(ids) - 2) // 256)
            slot, deck = int(deck[0]), deck[T // 256:]
            offs.append(min(slot * 256 + int(rng.integers(256)), len(ids) - T - 1))
        offs = offs[rank::RANKS]
        x = torch.stack([ids[o:o + T] for o in offs])
        y = torch.stack([ids[o + 1:o + T + 1] for o in offs])
        opt.param_groups[0]["lr"] = LR_ADAM * rate(step, steps)
        flat.zero_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x, y)
        loss.backward()
        dist.all_reduce(flat)
        flat /= RANKS
        flat *= min(1.0, 1.0 / (float(flat.norm()) + 1e-6))
        opt.step()
        muon(LR_MUON * rate(step, steps))
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = torch.tensor([sum(losses[-n:]) / len(losses[-n:]) for n in (50, 200)])
            dist.all_reduce(mean)
            mean /= RANKS
            took = time.time() - start
            if rank == 0:
                print(f"step {step + 1}/{steps} loss {mean[0]:.4f} rate {rate(step, steps):.3f} "
                      f"{(step + 1) * TOKENS / took:.0f} tok/s {took:.0f} s pass {used}", flush=True)
                if (step + 1) % 500 == 0 or step + 1 == steps:
                    torch.save({"model": model.state_dict()}, work / "model.pt")
                if step + 1 == steps:
                    print(f"final loss (mean of the last 200 steps) {mean[1]:.4f}")
    dist.destroy_process_group()


def stage_export(work):
    import torch
    from safetensors.torch import save_file
    state = torch.load(work / "model.pt", map_location="cpu")["model"]
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in state.items()}
    save_file(state, str(HERE / "model.safetensors"), metadata={"format": "pt"})
    tok = json.loads((work / "tokenizer.json").read_text())
    (HERE / "tokenizer.json").write_text(json.dumps(tok, ensure_ascii=False, indent=1) + "\n")
    eos = tok["model"]["vocab"][EOS]
    config = dict(CONFIG, eos_token_id=eos)
    write = lambda name, value: (HERE / name).write_text(json.dumps(value, indent=2) + "\n")
    write("config.json", config)
    write("generation_config.json", {"eos_token_id": eos, "pad_token_id": eos, "do_sample": False})
    write("tokenizer_config.json", {
        "add_bos_token": False, "add_eos_token": False, "add_prefix_space": False, "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": EOS, "pad_token": EOS, "unk_token": None,
        "model_max_length": 1024, "tokenizer_class": "PreTrainedTokenizerFast"})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    workdir = Path(sys.argv[1])
    for name in sys.argv[2:] or ["fetch", "corpus", "tokenizer", "train", "export"]:
        globals()["stage_" + name](workdir)
