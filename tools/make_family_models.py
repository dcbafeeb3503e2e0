#!/usr/bin/env python3
"""Small random models of every family that Setun runs, with reference logits: tests/golden/families/.

    python tools/make_family_models.py tests/golden/families

Needs torch, transformers, tokenizers, safetensors, numpy and gguf. Each folder is what a published model of that family
looks like (config.json, model.safetensors, tokenizer.json; one is a GGUF file), and expected.bin/expected.json hold, in
float32, the logits after each of six tokens: with activation rounding off, and, where the family rounds, on. They are
computed by transformers (its own BitLinear and AutoBitLinear for the BitNet rules); where transformers lacks a piece
it is expressed through one that it has, as said at each family. `noise` is how far the reference's own logits move when
every embedding value is changed by a factor of 1 +- 1e-6: rounding ties amplify.

Widths are chosen so that the usual block sizes do not divide the rows. Seeds are fixed; the files are reproducible.
"""
import json
import math
import os
import shutil
import sys

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, BitNetQuantConfig
from transformers.integrations import bitnet

torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)
IDS = [260, 39, 256, 257, 78, 258]
SPECIALS = ["<|begin|>", "<|end|>", "<|pad|>", "<|unk|>"]
MERGES = [("h", "e"), ("l", "l"), ("Ġ", "w"), ("o", "r")]
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def make_tokenizer():
    """Byte-level BPE: 256 bytes, four merges, four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    for a, b in MERGES:
        vocabulary[a + b] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


VOCABULARY = 256 + len(MERGES) + len(SPECIALS)


class Maker:
    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def normal(self, *shape, std=1.0, mean=0.0):
        return torch.from_numpy((self.random.standard_normal(shape) * std + mean).astype(np.float32))

    def codes(self, rows, columns):
        return torch.from_numpy(self.random.choice([-1, 0, 1], size=(rows, columns), p=[0.31, 0.36, 0.33]).astype(np.int8))


def shapes(c):
    """Rows and columns of the seven projections."""
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    q, k, width, ff = c["num_attention_heads"] * head, c["num_key_value_heads"] * head, c["hidden_size"], c["intermediate_size"]
    return {"self_attn.q_proj": (q, width), "self_attn.k_proj": (k, width), "self_attn.v_proj": (k, width), "self_attn.o_proj": (width, q),
            "mlp.gate_proj": (ff, width), "mlp.up_proj": (ff, width), "mlp.down_proj": (width, ff)}, head, q


def base_tensors(m, c, sub_norms=False, qk_norm=False, gemma=False, norm_dtype=torch.float32):
    """Embedding, norms, head: everything but the projections. Gemma's norms are stored without their 1."""
    t = {}
    center = 0.0 if gemma else 1.0
    _, head, q = shapes(c)

    def norm(n):
        return m.normal(n, std=0.2, mean=center).to(norm_dtype)

    t["model.embed_tokens.weight"] = m.normal(VOCABULARY, c["hidden_size"]).to(torch.bfloat16)
    t["model.norm.weight"] = norm(c["hidden_size"])
    if not c.get("tie_word_embeddings", False):
        t["lm_head.weight"] = m.normal(VOCABULARY, c["hidden_size"], std=0.3).to(torch.bfloat16)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        t[p + "input_layernorm.weight"] = norm(c["hidden_size"])
        t[p + "post_attention_layernorm.weight"] = norm(c["hidden_size"])
        if gemma:
            t[p + "pre_feedforward_layernorm.weight"] = norm(c["hidden_size"])
            t[p + "post_feedforward_layernorm.weight"] = norm(c["hidden_size"])
        if sub_norms:
            t[p + "self_attn.attn_sub_norm.weight"] = norm(q)
            t[p + "mlp.ffn_sub_norm.weight"] = norm(c["intermediate_size"])
        if qk_norm:
            t[p + "self_attn.q_norm.weight"] = norm(head)
            t[p + "self_attn.k_norm.weight"] = norm(head)
    return t


def add_packed(m, c, t, divide, bias=(), norms=None):
    """uint8 [out/4, in] and weight_scale, by transformers' own packing."""
    for i in range(c["num_hidden_layers"]):
        for name, (rows, columns) in shapes(c)[0].items():
            p = f"model.layers.{i}.{name}"
            t[p + ".weight"] = bitnet.pack_weights(m.codes(rows, columns).float())
            scale = 1.3 / math.sqrt(columns) * (1 + 0.2 * m.random.random())
            t[p + ".weight_scale"] = torch.tensor([1 / scale if divide else scale]).to(torch.bfloat16)
            if name.split(".")[1] in bias:
                t[p + ".bias"] = m.normal(rows, std=0.3).to(torch.bfloat16)
            if norms:
                t[p + norms] = m.normal(columns, std=0.2, mean=1.0)


def add_masters(m, c, t, dtype, norms=None):
    for i in range(c["num_hidden_layers"]):
        for name, (rows, columns) in shapes(c)[0].items():
            t[f"model.layers.{i}.{name}.weight"] = m.normal(rows, columns, std=1.3 / math.sqrt(columns)).to(dtype)
            if norms:
                t[f"model.layers.{i}.{name}{norms}"] = m.normal(columns, std=0.2, mean=1.0)


def add_dense_ternary(m, c, t, dtype, group=None, parts=1):
    """Plain floats that are scale * code: `parts` scales over blocks of rows, or one a group of columns."""
    for i in range(c["num_hidden_layers"]):
        for name, (rows, columns) in shapes(c)[0].items():
            codes = m.codes(rows, columns).float()
            if group:
                scales = m.normal(rows, columns // group, std=0.1, mean=1.3 / math.sqrt(columns)).abs().to(dtype).float()
                w = codes * scales.repeat_interleave(group, dim=1)
            else:
                scales = m.normal(parts, 1, std=0.02, mean=1.3 / math.sqrt(columns)).abs().to(dtype).float()
                w = codes * scales.repeat_interleave(rows // parts, dim=0)
            t[f"model.layers.{i}.{name}.weight"] = w.to(dtype)


def mlx_pack(m, rows, columns, group, std):
    """MLX affine with 2 bits: sixteen codes a uint32, lowest bits first; w = scale * code + bias, bias = -scale."""
    codes = (m.codes(rows, columns).numpy() + 1).astype(np.uint32).reshape(rows, columns // 16, 16)
    words = (codes << (2 * np.arange(16, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
    scales = m.normal(rows, columns // group, std=0.1 * std, mean=std).abs().to(torch.bfloat16)
    return torch.from_numpy(words), scales, -scales


def mlx_unpack(words, scales, biases):
    rows, columns = words.shape[0], words.shape[1] * 16
    codes = (words.numpy()[:, :, None] >> (2 * np.arange(16, dtype=np.uint32))) & 3
    codes = torch.from_numpy(codes.reshape(rows, columns).astype(np.float32))
    group = columns // scales.shape[1]
    return codes * scales.float().repeat_interleave(group, 1) + biases.float().repeat_interleave(group, 1)


# ---- references ----

def build(config, tensors, quantization=None):
    """A transformers model in float32 with these tensors. quantization: BitNetQuantConfig's arguments; the projections then
    become transformers' BitLinear (packed) or AutoBitLinear."""
    config = dict(config)
    config.pop("quantization_config", None)
    model_type = config.pop("model_type")
    c = AutoConfig.for_model(model_type, **config)
    c._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(c).float().eval()
    state = {k: v for k, v in tensors.items()}
    if quantization:
        rules = BitNetQuantConfig(**quantization)
        bitnet.replace_with_bitnet_linear(model, modules_to_not_convert=["lm_head"], quantization_config=rules)
        model.to_empty(device="cpu") if any(p.is_meta for p in model.parameters()) or any(b.is_meta for b in model.buffers()) else None
        c2 = AutoModelForCausalLM.from_config(c).float().eval()  # rotary buffers and the like, which to_empty left undefined
        for name, buffer in c2.named_buffers():
            model.get_buffer(name).copy_(buffer)
        for name in list(state):
            if state[name].dtype == torch.uint8 and rules.linear_class == "autobitlinear":
                state[name] = bitnet.unpack_weights(state[name], torch.float32)
    state = {k: v if v.dtype == torch.uint8 else v.float() for k, v in state.items()}
    if config.get("tie_word_embeddings") and "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return model


def run(model, rounding, perturb=0.0):
    """Logits [T, V] and the last hidden state [T, width]."""
    saved = bitnet.ActQuant.forward, bitnet.BitLinear.activation_quant
    if not rounding:
        bitnet.ActQuant.forward = staticmethod(lambda ctx, x: x)
        bitnet.BitLinear.activation_quant = lambda self, x, num_bits=8: (x, torch.ones(x.shape[:-1] + (1,)))
    embedding = model.get_input_embeddings().weight
    original = embedding.detach().clone()
    try:
        with torch.no_grad():
            if perturb:
                signs = torch.from_numpy(np.random.default_rng(5).choice([-1.0, 1.0], size=tuple(embedding.shape)).astype(np.float32))
                embedding.mul_(1 + perturb * signs)
            out = model(torch.tensor([IDS]), use_cache=False, output_hidden_states=True)
            return out.logits[0].float().numpy(), out.hidden_states[-1][0].float().numpy()
    finally:
        bitnet.ActQuant.forward, bitnet.BitLinear.activation_quant = staticmethod(saved[0]), saved[1]
        with torch.no_grad():
            embedding.copy_(original)


def relative(a, b):
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


def save(out, name, config, tensors, model, int8, embedding=False):
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    if config:
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(config, f, indent=1)
            f.write("\n")
        save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "tokenizer.json"), "w") as f:
            json.dump(json.loads(make_tokenizer().to_str()), f, ensure_ascii=False, separators=(",", ":"))
    blobs, expected = [], {"ids": IDS, "vocabulary": VOCABULARY}
    off, hidden = run(model, False)
    blobs.append(off)
    expected["off"] = {"offset": 0, "noise": relative(run(model, False, 1e-6)[0], off)}
    if int8:
        on, hidden = run(model, True)
        expected["on"] = {"offset": sum(b.nbytes for b in blobs), "noise": relative(run(model, True, 1e-6)[0], on), "rounding": relative(on, off)}
        blobs.append(on)
    if embedding:  # of the last token, as the family is meant to run
        pooled = hidden[-1] / np.linalg.norm(hidden[-1])
        expected["embedding"] = {"offset": sum(b.nbytes for b in blobs), "width": len(pooled)}
        blobs.append(pooled.astype(np.float32))
    with open(os.path.join(folder, "expected.bin"), "wb") as f:
        for b in blobs:
            f.write(b.astype("<f4").tobytes())
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump(expected, f)
        f.write("\n")
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name:16s} {size / 1000:6.1f} kB  logits rms {np.sqrt((off ** 2).mean()):.3f}  " + ", ".join(f"{k}: {v}" for k, v in expected.items() if k in ("off", "on")))
    return folder


def config_of(architecture, model_type, **more):
    c = {"architectures": [architecture], "model_type": model_type, "vocab_size": VOCABULARY, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
         "bos_token_id": 260, "eos_token_id": 261, "hidden_act": "silu", "attention_bias": False}
    c.update(more)
    return c


# ---- the families ----

def bitnet_packed(out):
    """BitNet b1.58 2B-4T: relu2, sub-norms, packed, weight_scale multiplies."""
    m = Maker(1)
    c = config_of("BitNetForCausalLM", "bitnet", hidden_size=60, intermediate_size=140, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
                  hidden_act="relu2", rope_theta=500000.0, tie_word_embeddings=True)
    c["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline", "modules_to_not_convert": None}
    t = base_tensors(m, c, sub_norms=True)
    add_packed(m, c, t, divide=False)
    save(out, "bitnet_packed", c, t, build(c, t, dict(linear_class="autobitlinear", quantization_mode="offline")), True)


def bitnet_online(out):
    """BitNet b1.58 2B-4T-bf16: bf16 masters, quantised on the fly; an untied head."""
    m = Maker(2)
    c = config_of("BitNetForCausalLM", "bitnet", hidden_size=24, intermediate_size=44, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                  hidden_act="relu2", rope_theta=500000.0, tie_word_embeddings=False)
    c["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    t = base_tensors(m, c, sub_norms=True, norm_dtype=torch.bfloat16)
    add_masters(m, c, t, torch.bfloat16)
    save(out, "bitnet_online", c, t, build(c, t, dict(linear_class="autobitlinear", quantization_mode="online")), True)


def bitnet_1bitllm(out):
    """1bitLLM bitnet_b1_58: the same arithmetic under its own names, SiLU, no key-value groups; f16 masters."""
    m = Maker(3)
    c = config_of("BitnetForCausalLM", "llama", hidden_size=24, intermediate_size=52, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, rope_theta=10000.0,
                  tie_word_embeddings=True, weight_bits=1, input_bits=8)
    t = base_tensors(m, c, sub_norms=True, norm_dtype=torch.float16)
    add_masters(m, c, t, torch.float16)
    reference = build({**c, "model_type": "bitnet"}, t, dict(linear_class="autobitlinear", quantization_mode="online"))
    t["model.embed_tokens.weight"] = t["model.embed_tokens.weight"].to(torch.float16)
    reference.get_input_embeddings().weight.data.copy_(t["model.embed_tokens.weight"].float())
    names = {k: k.replace("self_attn.attn_sub_norm", "self_attn.inner_attn_ln").replace("mlp.ffn_sub_norm", "mlp.ffn_layernorm") for k in t}
    save(out, "bitnet_1bitllm", c, {names[k]: v for k, v in t.items()}, reference, True)


def llama_bitnet(out):
    """HF1BitLLM Llama3-8B-1.58: plain Llama 3 with its rope scaling, packed, weight_scale divides."""
    m = Maker(4)
    c = config_of("LlamaForCausalLM", "llama", hidden_size=32, intermediate_size=60, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rope_theta=10000.0,
                  tie_word_embeddings=False, rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32})
    c["quantization_config"] = {"quant_method": "bitnet", "modules_to_not_convert": None}
    t = base_tensors(m, c)
    add_packed(m, c, t, divide=True)
    save(out, "llama_bitnet", c, t, build(c, t, dict(linear_class="bitlinear")), True)


def falcon3(out):
    """Falcon3-1.58bit: Llama shape with a head size of its own, packed, weight_scale divides."""
    m = Maker(5)
    c = config_of("LlamaForCausalLM", "llama", hidden_size=28, intermediate_size=60, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=20,
                  rope_theta=1000042.0, tie_word_embeddings=False)
    c["quantization_config"] = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
    t = base_tensors(m, c, norm_dtype=torch.bfloat16)
    add_packed(m, c, t, divide=True)
    save(out, "falcon3", c, t, build(c, t, dict(linear_class="bitlinear")), True)


def llama_sub_norm(out):
    """Llama with sub-norms (a converted float model). transformers has no such Llama, but its BitNet with SiLU is one."""
    m = Maker(6)
    c = config_of("LlamaForCausalLM", "llama", hidden_size=48, intermediate_size=104, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, rope_theta=10000.0, tie_word_embeddings=True)
    c["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    t = base_tensors(m, c, sub_norms=True)
    add_packed(m, c, t, divide=False)
    save(out, "llama_sub_norm", c, t, build({**c, "model_type": "bitnet"}, t, dict(linear_class="autobitlinear", quantization_mode="offline")), True)


def trilm(out):
    """TriLM: Llama, f16 weights with several scales a tensor, float activations. Linear rope scaling for good measure."""
    m = Maker(7)
    c = config_of("LlamaForCausalLM", "llama", hidden_size=20, intermediate_size=44, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, rope_theta=10000.0,
                  tie_word_embeddings=False, rope_scaling={"type": "linear", "factor": 2.0})
    t = base_tensors(m, c, norm_dtype=torch.float16)
    add_dense_ternary(m, c, t, torch.float16, parts=2)
    save(out, "trilm", c, t, build(c, t), False)


def bonsai_mlx(out):
    """Ternary-Bonsai in MLX form: Qwen3 (QK-norm), 2 bits in groups, embedding and head too, float activations; YaRN."""
    m = Maker(8)
    c = config_of("Qwen3ForCausalLM", "qwen3", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, rope_theta=1000000.0,
                  rms_norm_eps=1e-6, tie_word_embeddings=False, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32})
    group = 32
    t = base_tensors(m, c, qk_norm=True, norm_dtype=torch.bfloat16)
    packed, dense = {}, dict(t)
    matrices = {"model.embed_tokens": (VOCABULARY, 64, 1.0), "lm_head": (VOCABULARY, 64, 0.3)}
    for i in range(2):
        for name, (rows, columns) in shapes(c)[0].items():
            matrices[f"model.layers.{i}.{name}"] = (rows, columns, 1.3 / math.sqrt(columns))
    for name, (rows, columns, std) in matrices.items():
        words, scales, biases = mlx_pack(m, rows, columns, group, std)
        packed[name + ".weight"], packed[name + ".scales"], packed[name + ".biases"] = words, scales, biases
        dense[name + ".weight"] = mlx_unpack(words, scales, biases)
    stored = {k: v for k, v in t.items() if k not in dense or k.endswith("norm.weight")}
    stored.update(packed)
    reference = build(c, dense)
    c["quantization"] = c["quantization_config"] = {"group_size": group, "bits": 2, "mode": "affine"}
    save(out, "bonsai_mlx", c, stored, reference, False)


def qwen2_bitnet(out):
    """BitNet fine-tunes of Qwen2 (bitnet-r1): biases on q, k, v, an RMSNorm before every projection, packed, divide."""
    m = Maker(9)
    c = config_of("Qwen2ForCausalLM", "qwen2", hidden_size=40, intermediate_size=76, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, rope_theta=1000000.0,
                  rms_norm_eps=1e-6, tie_word_embeddings=True, use_sliding_window=False, sliding_window=None)
    c.pop("attention_bias")
    c["quantization_config"] = {"quant_method": "bitnet", "linear_class": "bitlinear", "use_rms_norm": True, "rms_norm_eps": 1e-5}
    t = base_tensors(m, c)
    add_packed(m, c, t, divide=True, bias=("q_proj", "k_proj", "v_proj"), norms=".rms_norm.weight")
    save(out, "qwen2_bitnet", c, t, build(c, t, dict(linear_class="bitlinear", use_rms_norm=True, rms_norm_eps=1e-5)), True)


def embedding_qwen3(out):
    """bitnet-embeddings-0.6b as its conversion notes describe it: Qwen3Model (no head, names without "model."), bf16
    masters, ".norm.weight" before every projection, nothing about it in config.json."""
    m = Maker(10)
    c = config_of("Qwen3Model", "qwen3", hidden_size=28, intermediate_size=60, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16, rope_theta=1000000.0,
                  rms_norm_eps=1e-6, tie_word_embeddings=True)
    t = base_tensors(m, c, qk_norm=True)
    add_masters(m, c, t, torch.bfloat16, norms=".rms_norm.weight")
    reference = build(c, t, dict(linear_class="autobitlinear", quantization_mode="online", use_rms_norm=True, rms_norm_eps=1e-6))
    stored = {k.removeprefix("model.").replace(".rms_norm.weight", ".norm.weight"): v for k, v in t.items()}
    save(out, "embedding_qwen3", c, stored, reference, True, embedding=True)


def embedding_gemma3(out):
    """bitnet-embeddings-270m: Gemma3 (1 + w norms, four a layer, GELU, scaled embedding, sliding layers with their own rope)."""
    m = Maker(11)
    c = config_of("Gemma3TextModel", "gemma3_text", hidden_size=36, intermediate_size=72, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=24,
                  rms_norm_eps=1e-6, tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=20, sliding_window=3,
                  layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_theta=1000000.0, rope_local_base_freq=10000.0)
    c.pop("hidden_act")
    c["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline", "use_rms_norm": True, "rms_norm_eps": 1e-6}
    t = base_tensors(m, c, qk_norm=True, gemma=True)
    add_packed(m, c, t, divide=False, norms=".rms_norm.weight")
    reference_config = {k: v for k, v in c.items() if k not in ("rope_theta", "rope_local_base_freq")}
    reference_config["rope_parameters"] = {"full_attention": {"rope_type": "default", "rope_theta": 1000000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    reference = build(reference_config, t, dict(linear_class="autobitlinear", quantization_mode="offline", use_rms_norm=True, rms_norm_eps=1e-6))
    stored = {k.removeprefix("model."): v for k, v in t.items()}
    save(out, "embedding_gemma3", c, stored, reference, True, embedding=True)


def minicpm4(out):
    """BitCPM4: MiniCPM4 with group scales in plain bf16. Its scales are folded into a Llama of transformers: embedding
    times scale_emb, o and down times scale_depth/sqrt(layers), head times dim_model_base/width; LongRoPE is Llama's too."""
    m = Maker(12)
    short = [1.0 + 0.05 * i for i in range(8)]
    c = config_of("MiniCPMForCausalLM", "minicpm", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, rope_theta=10000.0,
                  tie_word_embeddings=True, scale_emb=3, scale_depth=1.4, dim_model_base=8, mup_denominator=32, max_position_embeddings=64,
                  rope_scaling={"rope_type": "longrope", "short_factor": short, "long_factor": [4 * f for f in short], "original_max_position_embeddings": 32})
    t = base_tensors(m, c, norm_dtype=torch.bfloat16)
    add_dense_ternary(m, c, t, torch.bfloat16, group=32)
    folded = {k: v.float() for k, v in t.items()}
    for k in folded:
        if "o_proj" in k or "down_proj" in k:
            folded[k] = folded[k] * (1.4 / math.sqrt(c["num_hidden_layers"]))
    folded["lm_head.weight"] = folded["model.embed_tokens.weight"] * (8 / 32)
    folded["model.embed_tokens.weight"] = folded["model.embed_tokens.weight"] * 3
    llama = {k: v for k, v in c.items() if k not in ("scale_emb", "scale_depth", "dim_model_base", "mup_denominator")}
    reference = build({**llama, "model_type": "llama", "tie_word_embeddings": False}, folded)
    save(out, "minicpm4", c, t, reference, False)


def hadamard(n):
    h = np.array([[1.0]])
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / math.sqrt(n)


def rotate_rows(w, signs, block):
    """Rows of w times diag(signs) H, per block: what a rotated file stores. Applied to a stored row it gives s * (H z) reversed."""
    h = hadamard(block)
    return ((w * signs).reshape(len(w), -1, block) @ h).reshape(w.shape)


def unrotate_rows(z, signs, block):
    h = hadamard(block)
    return (z.reshape(len(z), -1, block) @ h).reshape(z.shape) * signs


def rotated(out):
    """prism.hadamard.*: a Qwen3 GGUF whose weights and embedding are stored in a rotated basis. The stored f16 values are the
    truth; the reference is transformers with them rotated back."""
    m = Maker(13)
    c = config_of("Qwen3ForCausalLM", "qwen3", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=1, head_dim=16, rope_theta=10000.0,
                  rms_norm_eps=1e-6, tie_word_embeddings=True)
    block = 16
    t = base_tensors(m, c, qk_norm=True)
    add_masters(m, c, t, torch.float32)
    signs = {w: m.random.choice([-1.0, 1.0], size=w) for w in (32, 48, 64)}
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
    folder = os.path.join(out, "rotated")
    stored, truth, rotated_names = {}, {}, []
    for k, v in t.items():
        x = v.double().numpy()
        if k == "model.embed_tokens.weight":
            g = "token_embd.weight"
        elif k == "model.norm.weight":
            g = "output_norm.weight"
        else:
            g = f"blk.0.{names[k.removeprefix('model.layers.0.').removesuffix('.weight')]}.weight"
        if x.ndim == 2:
            z = rotate_rows(x, signs[x.shape[1]], block).astype(np.float16)
            stored[g] = z
            truth[k] = torch.from_numpy(unrotate_rows(z.astype(np.float64), signs[x.shape[1]], block).astype(np.float32))
            if g != "token_embd.weight":
                rotated_names.append(g)
        else:
            stored[g], truth[k] = x.astype(np.float32), v
    folder = save(out, "rotated", None, None, build(c, truth), False)
    w = gguf.GGUFWriter(os.path.join(folder, "model.gguf"), "qwen3")
    w.add_block_count(1), w.add_context_length(128), w.add_embedding_length(32), w.add_feed_forward_length(64), w.add_head_count(3), w.add_head_count_kv(1)
    w.add_key_length(16), w.add_value_length(16), w.add_layer_norm_rms_eps(1e-6), w.add_rope_freq_base(10000.0)
    w.add_uint32("prism.hadamard.version", 1)
    w.add_uint32("prism.hadamard.block_size", block)
    w.add_string("prism.hadamard.transform", "normalized-sylvester-walsh-hadamard")
    w.add_string("prism.hadamard.axis", "input-last-dimension")
    w.add_string("prism.hadamard.sign_mode", "explicit")
    w.add_array("prism.hadamard.sign_widths", sorted(signs))
    w.add_array("prism.hadamard.sign_values", [int(s) for width in sorted(signs) for s in signs[width]])
    w.add_array("prism.hadamard.weight_names", rotated_names)
    w.add_array("prism.hadamard.inverse_weight_names", ["token_embd.weight"])
    for name, x in stored.items():
        w.add_tensor(name, x)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


FAMILIES = [bitnet_packed, bitnet_online, bitnet_1bitllm, llama_bitnet, falcon3, llama_sub_norm, trilm, bonsai_mlx, qwen2_bitnet, embedding_qwen3, embedding_gemma3, minicpm4, rotated]

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for family in FAMILIES:
        if len(sys.argv) == 2 or family.__name__ in sys.argv[2:]:
            family(sys.argv[1])
