#!/usr/bin/env python3
"""Writes tests/golden/text: small tokenizers of every family, lines of text, and the ids that Hugging Face `tokenizers`
and `sentencepiece` give for them. Run: tools/make_tokenizer_goldens.py [folder with SmolLM2's tokenizer.json].
Needs tokenizers, sentencepiece, gguf. Everything is seeded: the same versions give the same files.

lines.bin: u32 length, bytes; may be invalid UTF-8 (references see it decoded with errors="replace").
NAME.ids: per line and mode (0: plain; 1: special tokens parsed and added) u32 FNV-1a of the ids as u32, 0: no reference
for this mode; for the first WHOLE lines u16 count and the ids as u16 follow."""
import base64
import json
import os
import random
import struct
import sys
import tempfile

import gguf
import numpy
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = os.path.join(os.path.dirname(__file__), "..", "tests", "golden", "text")
WHOLE = 40
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]

SENTENCES = """The quick brown fox jumps over the lazy dog, and it's 1234567 times they'd said I'LL we've don't.
A ternary computer counts with minus one, zero and one; it was built in 1958.
for (int i = 0; i < n; i++) { total += values[i] * 3.14159; }  // sums everything
def hello(name):\n    return f"Hello, {name}!"\n\n\nprint(hello('world'))
Быстрая коричневая лиса прыгает через ленивую собаку, и это случилось 12 раз.
Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. ΣΊΣΥΦΟΣ
敏捷的棕色狐狸跳过了懒狗。机器学习模型需要大量的数据。
素早い茶色の狐がのろまな犬を飛び越える。カタカナとひらがな、漢字。
빠른 갈색 여우가 게으른 개를 뛰어넘습니다. 한국어 문장입니다.
الثعلب البني السريع يقفز فوق الكلب الكسول. ١٢٣٤٥
השועל החום המהיר קופץ מעל הכלב העצלן.
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। १२३
দ্রুত বাদামী শিয়াল অলস কুকুরের উপর দিয়ে লাফ দেয়।
สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ
Žluťoučký kůň úpěl ďábelské ódy; naïve façade, Ærøskøbing, Straße, İstanbul, ıssız.
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, 2½ m² und ³√x ≤ ∞.
👍🏽 family 👨‍👩‍👧‍👦 flags 🇺🇳🇩🇪 hearts ❤️ ☃ 🤖🤖🤖 keycap 1️⃣
e\u0301 vs \u00e9, n\u0303, a\u0323\u0307 and a\u0307\u0323, \u1e9b\u0323, \ufb01ne \u2460 \u3231 \uff21\uff22\uff23 \u212b \u0130
\u1100\u1161\u11a8 \uac01 \u1100\u1161 \uac00\u11a8
tabs\tand\u00a0no-break\u2003em space\u200bzero width\u180eMVS\u0085NEL\u2028line\u3000ideographic
\r\nWindows lines\r\n\r\nold Mac\rend\n\n\n   indented\n\t\tmore
snake_case camelCase HTTPServer x86_64 v1.2.3-beta+build.5 user@example.org https://example.org/a?b=c&d=%20
$100,000.00 €5 £6 ¥7 50% #1 @you *star* **bold** `code` ~~~ ^^^ |pipe| <tag/> [a](b) {c} ... --- !!! ??? ¿¡
'S 'T 'RE 'Ve 'm 'LL 'd \u2019s \u017f'\u017f it'\u017f \u212a'll
<|im_start|>user\nhi<|im_end|> and <|endoftext|> <s>x</s> <|im_end <|im_|im_end|>""".split("\n")
SENTENCES = [s.encode().decode("unicode_escape").encode("latin-1").decode() if "\\" in s and s.isascii() else
             s.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r") for s in SENTENCES]


def settled(c):
    import unicodedata
    if (unicodedata.category(c)[0] == "M") != (normalizers.StripAccents().normalize_str("a" + c) == "a"):
        return False
    return all(unicodedata.normalize(f, c) == getattr(normalizers, f)().normalize_str(c) for f in ("NFC", "NFD", "NFKC", "NFKD"))


def make_lines(rng):
    lines = [b"", b" ", b"  ", b"\n", b"\n\n", b" \n ", b"a", b" a", b"a ", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"a\xc0\xafb", b"\xed\xa0\x80x",
             b"\xf4\x90\x80\x80", b"ok\xe2\x28\xa1", b"\x00", b"nul\x00inside", "\ufeffbom".encode(), "\ufffd".encode(), b" " * 37 + b"x", b"\t" * 9, b"a" * 200,
             b"ab" * 150, "é".encode() * 60, "🤖".encode() * 30, b"1" * 50, b"!" * 40, b"\n" * 33, b"<|im_end|>", b" <|im_end|> ", b"x<|im_end|>y",
             b"<|im_end|><|im_end|>", b"<s><s>", b"<unk>", b"<0x41>", "▁".encode(), "▁▁a ▁b".encode(), "Ġhello Ċ".encode()]
    lines += [s.encode() for s in SENTENCES]
    lines += [b"a  <mask> b<mask>", b"word words sword word. _word word", b"the right  \t one right", b"x <think> y<think>\n", b"  fox   dog", b"   dog  <b> ", b"    <im_end> x ",
              b"  QUICK quick Quick", b"<mask>\n<mask>", "éword wordé word\u200d".encode()]
    words = [w for s in SENTENCES for w in s.split(" ") if w]
    glue = [" ", " ", " ", "  ", "\n", "\t", "", ", ", ". ", "\u00a0", "\r\n", " \n", "\n "]
    while len(lines) < 700:
        lines.append("".join(rng.choice(words) + rng.choice(glue) for _ in range(rng.randint(1, 9))).encode())
    pools = [range(0x20, 0x7f), range(0xa0, 0x250), range(0x370, 0x530), range(0x300, 0x370), range(0x590, 0x700), range(0x900, 0xa00), range(0xe00, 0xe80),
             range(0x1100, 0x1200), range(0x1e00, 0x2000), range(0x2000, 0x2070), range(0x2070, 0x2200), range(0x2460, 0x2500), range(0x3000, 0x3100),
             range(0x3200, 0x3400), range(0x4e00, 0x4f00), range(0xac00, 0xad00), range(0xf900, 0xfb10), range(0xfe00, 0x10000), range(0x1d400, 0x1d500),
             range(0x1f100, 0x1f200), range(0x1f300, 0x1f650), range(0x30, 0x3a), (9, 10, 13, 32, 32, 32)]
    import unicodedata
    while len(lines) < 1500:
        pool = rng.sample(pools, rng.randint(1, 3))
        text = "".join(chr(rng.choice(rng.choice(pool))) for _ in range(rng.randint(1, 24)))
        # Code points without a meaning yet change theirs between Unicode versions; the references' tables are older.
        lines.append("".join(c for c in text if unicodedata.category(c) != "Cn" and settled(c)).encode())
    while len(lines) < 1650:
        lines.append(bytes(rng.choice([rng.randrange(256), rng.randrange(0x20, 0x7f), rng.choice(b"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80")]) for _ in range(rng.randint(1, 20))))
    return lines


def fnv(ids):
    h = 0x811C9DC5
    for i in ids:
        for b in struct.pack("<I", i):
            h = (h ^ b) * 0x01000193 & 0xFFFFFFFF
    return h


def write_ids(name, lines, encoders):
    with open(os.path.join(OUT, name + ".ids"), "wb") as f:
        for n, line in enumerate(lines):
            text = line.decode("utf-8", errors="replace")
            for encode in encoders:
                ids = encode(text) if encode else None
                if ids is None:
                    f.write(struct.pack("<I", 0))
                    continue
                f.write(struct.pack("<I", fnv(ids) or 1))
                if n < WHOLE:
                    f.write(struct.pack(f"<H{len(ids)}H", len(ids), *ids))


def hf_encoders(tokenizer):
    def plain(text):
        tokenizer.encode_special_tokens = True
        return tokenizer.encode(text, add_special_tokens=False).ids

    def special(text):
        tokenizer.encode_special_tokens = False
        return tokenizer.encode(text, add_special_tokens=True).ids

    return plain, special


def save(name, document, lines):
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    with open(os.path.join(OUT, name + ".json"), "w") as f:
        f.write(text)
    write_ids(name, lines, hf_encoders(Tokenizer.from_str(text)))
    print(name, len(text))


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(name, lines, pre, normalizer=None, post=None, added=(), size=480, ignore_merges=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer = pre
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(SENTENCES * 4, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIALS, show_progress=False))
    if added:
        t.add_tokens(list(added))
    if post:
        t.post_processor = post
    document = json.loads(t.to_str())
    if ignore_merges:  # whole words that no merge makes, as Llama-3 has
        vocab = document["model"]["vocab"]
        n = max(list(vocab.values()) + [a["id"] for a in document["added_tokens"]]) + 1
        for word in ("Ġternary", "HTTPServer", "Ġcomputer", "Ã©Ã©"):
            if word not in vocab:
                vocab[word] = n
                n += 1
    save(name, document, lines)


def sequence(*parts):
    return pre_tokenizers.Sequence(list(parts))


def make_byte_level(lines):
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bos = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])])
    both = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 4)])
    byte_level("llama3", lines, sequence(split(LLAMA3), raw), post=bos, ignore_merges=True)
    byte_level("gpt2", lines, words)
    byte_level("prefixed", lines, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True), post=processors.RobertaProcessing(("</s>", 4), ("<s>", 3)),
               added=[AddedToken("<mask>", lstrip=True), AddedToken("word", single_word=True), AddedToken("right", rstrip=True), AddedToken("<think>")])
    byte_level("qwen2", lines, sequence(split(QWEN2), raw), normalizer=normalizers.NFC(), added=[AddedToken("<think>", normalized=False), AddedToken("fox", normalized=False)])
    byte_level("falcon", lines, sequence(pre_tokenizers.Punctuation("contiguous"), words, pre_tokenizers.Digits(individual_digits=False),
                                         pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")))
    byte_level("smollm", lines, sequence(pre_tokenizers.Digits(individual_digits=True), words))
    byte_level("gptneox", lines, words, normalizer=normalizers.NFC(), added=[AddedToken(" " * n, normalized=True) for n in range(2, 12)])
    byte_level("gpt4o", lines, sequence(split(GPT4O), raw), post=both)
    byte_level("lowered", lines, sequence(pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("isolated"), raw),
               normalizer=normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip(),
                                                normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace("fox", "cat")]),
               added=[AddedToken("QUICK", normalized=True)])
    byte_level("nfkc", lines, sequence(pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.Split(Regex("\\d+"), "merged_with_previous"),
                                       pre_tokenizers.Split(Regex("[aeiou]"), "removed"), raw), normalizer=normalizers.NFKC())
    byte_level("nfd", lines, sequence(pre_tokenizers.Split(Regex("\\w+|[^\\w\\s]+"), "removed", invert=True), raw), normalizer=normalizers.NFD())


def rules():
    """A small table of character rules: folds, ligatures, composed letters, a sequence inside a longer one."""
    out = [(chr(c), chr(c - 0xFEE0)) for c in range(0xFF01, 0xFF5F)]
    out += [("e\u0301", "é"), ("a\u0323", "ạ"), ("a\u0323\u0307", "ạ\u0307"), ("n\u0303", "ñ"), ("ﬁ", "fi"), ("①", "1"), ("㈱", "(株)"), ("\u212b", "\u00c5"), ("½", "1/2"),
            ("\t", " "), ("\n", " "), ("\r", " "), ("\u00a0", " "), ("\u3000", " "), ("\u2003", " "), ("\u200b", ""), ("\ufeff", ""), ("…", "..."),
            ("ᄀ", "가"), ("ᄀ\u1161", "각"), ("~~", "~"), ("\u0301", "'")]
    return "".join(" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) + "\n" for a, b in out)


def sentencepiece_model(kind, **options):
    with tempfile.TemporaryDirectory() as folder:
        if "normalization_rule_name" not in options:
            options["normalization_rule_tsv"] = os.path.join(folder, "rules.tsv")
            with open(options["normalization_rule_tsv"], "w") as f:
                f.write(rules())
        corpus = os.path.join(folder, "corpus.txt")
        with open(corpus, "w") as f:
            for s in SENTENCES * 6:
                f.write(s.replace("\n", " ").replace("\r", " ").replace("\0", "") + "\n")
        prefix = os.path.join(folder, "m")
        sentencepiece.SentencePieceTrainer.train(input=corpus, model_prefix=prefix, model_type=kind, hard_vocab_limit=False, minloglevel=2, num_threads=1,
                                                 max_sentence_length=100000, **options)
        with open(prefix + ".model", "rb") as f:
            return f.read()


def write_gguf(name, model, lines):
    proto = model_pb2.ModelProto()
    proto.ParseFromString(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    kind = "t5" if proto.trainer_spec.model_type == 1 else "llama"
    writer = gguf.GGUFWriter(os.path.join(OUT, name + ".gguf"), "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    # Converters write the spaces of user-defined pieces as spaces.
    user = model_pb2.ModelProto.SentencePiece.USER_DEFINED
    writer.add_token_list([p.piece.replace("▁", " ") if p.type == user else p.piece for p in proto.pieces])
    writer.add_token_scores([p.score for p in proto.pieces])
    writer.add_token_types([p.type for p in proto.pieces])
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
    if proto.normalizer_spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    if name in ("spm_plain", "spm_unigram_bytes"):  # the others leave it to what their kind means
        writer.add_bool("tokenizer.ggml.add_bos_token", kind == "t5")
        writer.add_bool("tokenizer.ggml.add_eos_token", False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    def special(text):
        if any(x in text for x in ("<s>", "</s>", "<unk>")):  # sentencepiece never reads these as tokens
            return None
        begins, ends = {"spm_plain": (False, False), "spm_unigram_bytes": (True, False)}.get(name, (kind == "llama", kind == "t5"))
        return [processor.bos_id()] * begins + processor.encode(text) + [processor.eos_id()] * ends

    write_ids(name, lines, (processor.encode, special))
    print(name, os.path.getsize(os.path.join(OUT, name + ".gguf")))


def llama_json(model, normalizer, pre, decoder, added=()):
    """What converters make of a SentencePiece BPE model: every way to cut a piece in two is a merge, best pieces first."""
    proto = model_pb2.ModelProto()
    proto.ParseFromString(model)
    vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
    scores = {p.piece: p.score for p in proto.pieces}
    merges = []
    for piece in sorted((p.piece for p in proto.pieces if p.type == 1), key=lambda x: -scores[x]):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        merges += sorted(cuts, key=lambda c: (vocab[c[0]], vocab[c[1]]))
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.decoder = decoder
    t.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in ("<unk>", "<s>", "</s>")])
    t.add_tokens(list(added))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return json.loads(t.to_str())


def make_sentencepiece(lines):
    llama = sentencepiece_model("bpe", vocab_size=700, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                                character_coverage=0.99, split_digits=True, allow_whitespace_only_pieces=True)
    gemma = sentencepiece_model("bpe", vocab_size=800, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
                                character_coverage=0.99, user_defined_symbols=["\n", "\n\n", "▁▁", "▁▁▁▁", "<b>", "fox"])
    plain = sentencepiece_model("bpe", vocab_size=700, character_coverage=0.98, user_defined_symbols=["<im_end>", "dog"])
    t5 = sentencepiece_model("unigram", vocab_size=700, character_coverage=0.98, user_defined_symbols=["<extra_0>", "lazy▁dog"])
    bytes_too = sentencepiece_model("unigram", vocab_size=900, character_coverage=0.98, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
    write_gguf("spm_llama", llama, lines)
    write_gguf("spm_gemma", gemma, lines)
    write_gguf("spm_plain", plain, lines)
    write_gguf("spm_t5", t5, lines)
    write_gguf("spm_unigram_bytes", bytes_too, lines)

    spaces = normalizers.Replace(" ", "▁")
    back = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    save("llama2", llama_json(llama, normalizers.Sequence([normalizers.Prepend("▁"), spaces]), None, back), lines)
    save("llama2_first", llama_json(llama, None, pre_tokenizers.Metaspace("▁", "first", False), back, [AddedToken("<think>", normalized=False)]), lines)
    save("gemma", llama_json(gemma, spaces, pre_tokenizers.Split(" ", "merged_with_previous"),
                             decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
                             [AddedToken(x, normalized=False) for x in ("\n", "\n\n", "<b>")]), lines)
    for name, model, fallback in (("t5", t5, False), ("unigram_bytes", bytes_too, True)):
        proto = model_pb2.ModelProto()
        proto.ParseFromString(model)
        t = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], 0, fallback))
        if proto.normalizer_spec.precompiled_charsmap:
            t.normalizer = normalizers.Sequence([normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
        t.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", True)
        t.decoder = decoders.Metaspace("▁", "always", True)
        t.add_special_tokens(["<s>", "</s>"])
        t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        save(name, json.loads(t.to_str()), lines)


def main():
    os.makedirs(OUT, exist_ok=True)
    lines = make_lines(random.Random(1958))
    with open(os.path.join(OUT, "lines.bin"), "wb") as f:
        for line in lines:
            f.write(struct.pack("<I", len(line)) + line)
    make_byte_level(lines)
    make_sentencepiece(lines)
    if len(sys.argv) > 1:
        tokenizer = Tokenizer.from_file(os.path.join(sys.argv[1], "tokenizer.json"))
        write_ids("smollm2", lines, hf_encoders(tokenizer))


if __name__ == "__main__":
    main()
