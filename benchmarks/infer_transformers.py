"""The shortest script with transformers and PEFT that asks an adapter one question: see infer_cold.py.

python benchmarks/infer_transformers.py output/fitness-offline "How many steps?" bfloat16
"""

import json
import sys
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

adapter, question, dtype = Path(sys.argv[1]), *sys.argv[2:]
base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
prompt = json.loads((adapter / "prompt.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
messages = [{"role": "developer", "content": prompt["developer"]}, {"role": "user", "content": question}]
inputs = tokenizer.apply_chat_template(
    messages, tools=prompt["tools"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, max_new_tokens=128, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :]))
