"""Converts a GGUF file with 16 bits to models of OpenVINO with 8 and 4 bits, as its own tools compress them.

    python open_vino_convert.py MODEL.gguf INT8_FOLDER INT4_FOLDER
"""

import os
import sys
import tempfile

import nncf
import openvino
import openvino_genai


def main():
    gguf, int8, int4 = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=os.path.dirname(int8)) as folder:
        # The converted model is written beside the file that is read.
        link = os.path.join(folder, "model.gguf")
        os.symlink(gguf, link)
        model = os.path.join(folder, "openvino_model.xml")
        try:
            openvino_genai.LLMPipeline(link, "CPU", enable_save_ov_model=True)
        except IndexError:
            # It does not know this kind of tokenizer. Prompts here are numbers, so the model is enough.
            assert os.path.exists(model)
        compress(model, int8, mode=nncf.CompressWeightsMode.INT8_ASYM)
        compress(model, int4, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, ratio=1.0)


def compress(path, folder, **options):
    model = nncf.compress_weights(openvino.Core().read_model(path), **options)
    openvino.save_model(model, os.path.join(folder, "openvino_model.xml"), compress_to_fp16=False)


main()
