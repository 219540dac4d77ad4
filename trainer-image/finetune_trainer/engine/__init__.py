"""Engine: forward and backward passes, and generation. The only package that owns tensors.

    devices          the device of a process: the GPUs that its pod was granted, or the CPU; its precision
    model            the base model in memory: loading from a local folder
    lora             the adapter in the model: PEFT creates and names it, `Fast` computes it
    adapted          which layers an adapter would learn in, before the weights are there
    layers           a decoder's layers, read from the modules of transformers
    prefix_tree      a micro-batch without padding: examples that begin with the same tokens share them
    prefixes         common prefixes of rows, as plain numbers; no torch
    sizes            of blocks, nodes and chunks, which the memory estimate counts with too; no torch
    passes           the seam: forward and backward passes of a micro-batch, by our decoder or by transformers
    packing          the micro-batches of transformers' passes without padding
    decoder          the decoder's forward and backward pass, written out: the hot loop of training
    attention        attention over a prefix tree, tile by tile, on a CPU
    flex_attention   the same on a GPU, by FlexAttention
    attention_types  what the two share
    elementwise      rotary embedding and activation, each with its gradient
    fused            linear layers that read the same input, with their adapters, as one matrix product
    loss             cross-entropy of the labelled positions only, chunk by chunk
    buffers          the buffer pool: memory that micro-batches reuse
    liger            norms and feed-forward parts of transformers' modules by liger-kernel, on a GPU
    own_part         a process loads its own part of each layer's weights alone
    sharded          the frozen layers sharded over processes by FSDP2, where one device does not hold them
    comparison       our passes against transformers' own, before they are trusted
    decoding         the decoder over rows that grow token by token: the hot loop of evaluation
    kv_cache         the keys and values of these rows, and the attention over them
    grammar          the tokens with which an answer still conforms to a JSON schema
    generate         answers, greedy and sampled, for many prompts at a time

model, lora -> layers -> decoder over a prefix_tree -> loss; decoding over a kv_cache -> generate
"""
