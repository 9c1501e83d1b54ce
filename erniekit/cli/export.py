"""`erniekit export`: a finished model folder from a run or a model."""

HELP = "a finished model folder (Hugging Face or Paddle layout), compared with its source; or a GGUF file"
USAGE = """usage: erniekit export MODEL|CONFIG [key=value ...]

MODEL is a training output folder (its best, else latest checkpoint), a model folder, starter, or a
hub id. CONFIG is a YAML or JSON file: the checkpoint in its output_dir if there is one, otherwise
its model_name_or_path (model_name_or_path=... on the command line always wins).

Writes weights, config, tokenizer, chat template, generation defaults and a model card to
output_dir/export, reads them back, and compares tensors and logits with the source.

  export_layout=hf|paddle|gguf   hf (default): transformers, vLLM; paddle: FastDeploy; gguf: llama.cpp
  export_dtype=auto|fp32|bf16|fp16   auto (default) keeps the format of the source; with gguf also
                                 q8_0, q6_k, q4_k, q4_0
  max_shard_size=5               of one file, in GB; 500MB and the like are understood
  export_dir=FOLDER              another place than output_dir/export
  copy_tokenizer=false           weights and configuration only
  overwrite_output_dir=true      replace an earlier export

  merge_adapter=false            an adapter alone: in peft's format (hf) or PaddleFormers' (paddle)

An adapter (of a run with fine_tuning: LoRA, or from elsewhere as lora_path=FOLDER) is merged in fp32;
merged and unmerged logits are compared.

  erniekit export ./output
  erniekit export run.yaml export_layout=paddle export_dtype=bf16 export_dir=./for-fastdeploy"""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from dataclasses import asdict

    from erniekit.cli.launch import require_paddle
    from erniekit.cli.target import choose_target

    require_paddle()
    target = choose_target(argv, "export")
    from erniekit.export.export import export_model
    from erniekit.log import console, logger
    from erniekit.quant.schemes import WHILE_READ

    adapter = target.one_adapter("is merged")
    logger.info(f"model: {target.description}")
    compute_type = target.config.model.compute_type
    if compute_type in WHILE_READ and adapter is None:
        logger.warning(
            f"compute_type: {compute_type} is how weights are held while they are used: what is exported "
            "are the full ones (export_dtype says in which type)"
        )
    exported = export_model(
        target.model,
        target.output_dir,
        target.overwrite,
        adapter,
        **asdict(target.config.export),
    )
    console.print(f"{exported.folder}: {exported.describe()}", markup=False)
    return 0
