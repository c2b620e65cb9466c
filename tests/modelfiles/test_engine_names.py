"""Names as sd.cpp has them: what its own `convert_tensor_name` made of these, compiled by itself."""

from __future__ import annotations

import pytest

from gguf_imagegen.modelfiles.engine_names import lora_name, model_name

D = "model.diffusion_model."
INPUT_1 = f"{D}input_blocks.1.1.transformer_blocks.0.attn1"
OUTPUT_4 = f"{D}output_blocks.4.1.transformer_blocks.0.attn2"
CLIP_LAYER = "transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("flux", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
         f"{D}double_blocks.0.img_attn.qkv.weight.lora_down"),
        ("flux", "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight",
         f"{D}double_blocks.0.img_attn.qkv.weight.lora_up"),
        ("flux", "transformer.transformer_blocks.1.attn.to_k.lora_A.default.weight",
         f"{D}double_blocks.1.img_attn.qkv.weight.1.lora_down"),
        ("flux", "transformer_blocks.19.attn.to_k.lora_A.weight",
         f"{D}transformer_blocks.19.attn.to_k.weight.lora_down"),
        ("flux", "transformer.single_transformer_blocks.2.proj_mlp.lora.up.weight",
         f"{D}single_blocks.2.linear1.weight.3.lora_up"),
        ("flux", "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha",
         f"text_encoders.clip_l.{CLIP_LAYER}.alpha"),
        ("ovis-image", "lora_unet_double_blocks_0_img_mlp_gate_proj.alpha",
         f"{D}double_blocks.0.img_mlp.gate.proj.weight.alpha"),
        ("flux", "base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight",
         "base_model.model.double_blocks.0.img_attn.qkv.weight.lora_down"),
        ("flux", "lycoris_double_blocks_0_img_attn_qkv.lokr_w1",
         "double_blocks.0.img_attn.qkv.weight.lokr_w1"),
        ("sd1", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight",
         f"{INPUT_1}.to_q.weight.lora_up"),
        ("sd1", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
         f"{INPUT_1}.to_q.weight.lora_down"),
        ("sdxl", "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_attn2_to_out_0.alpha",
         f"{OUTPUT_4}.to_out.0.weight.alpha"),
        ("sdxl", "lora_unet_input_blocks_4_1_proj_in.lora_up.weight",
         f"{D}input_blocks.4.1.proj_in.weight.lora_up"),
        ("sdxl", "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
         f"cond_stage_model.1.{CLIP_LAYER}.lora_up"),
        ("sdxl", "unet.up_blocks.0.upsamplers.0.conv.lora_up.weight",
         f"{D}output_blocks.2.2.conv.weight.lora_up"),
        ("sd3", "transformer.transformer_blocks.3.attn2.to_v.lora_A.weight",
         f"{D}joint_blocks.3.x_block.attn2.qkv.weight.2.lora_down"),
        ("z-image", "diffusion_model.layers.0.attention.to_out.0.lora_A.weight",
         f"{D}layers.0.attention.out.weight.lora_down"),
        ("qwen-image", "transformer_blocks.0.attn.to_q.lora_A.weight",
         f"{D}transformer_blocks.0.attn.to_q.weight.lora_down"),
        ("sd3", "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight",
         "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight.lora_up"),
        ("flux", "lora_unet_final_layer_linear.diff_b", f"{D}final.layer.linear.bias.diff"),
    ],
)  # fmt: skip
def test_a_loras_tensor_is_found_under_the_engines_name(family: str, name: str, expected: str) -> None:
    """The tensor that is changed, and the part; also where the engine's rules miss it."""
    assert lora_name(name, family) == expected


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("sd1", "unet.mid_block.resnets.1.conv1.weight", f"{D}middle_block.2.in_layers.2.weight"),
        ("sdxl", "unet.add_embedding.linear_2.bias", f"{D}label_emb.0.2.bias"),
        ("sdxl", "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight",
         "cond_stage_model.1.transformer.text_model.encoder.layers.3.self_attn.in_proj.weight"),
        ("flux", "text_encoders.t5xxl.transformer.enc.blk.0.ffn_up.weight",
         "text_encoders.t5xxl.transformer.encoder.block.0.layer.1.DenseReluDense.wi_1.weight"),
        ("z-image", "text_encoders.llm.blk.0.attn_q.weight",
         "text_encoders.llm.model.layers.0.self_attn.q_proj.weight"),
        ("flux", f"{D}double_blocks.0.img_attn.qkv.weight", f"{D}double_blocks.0.img_attn.qkv.weight"),
    ],
)  # fmt: skip
def test_a_models_tensor_is_found_under_the_engines_name(family: str, name: str, expected: str) -> None:
    """Models are renamed by the same rules."""
    assert model_name(name, family) == expected
