"""Published figures that the results page sets beside ours, each with the text it was read in."""

from __future__ import annotations

from dataclasses import dataclass

BTF = "README of BTF's code, raw data"
M3DM = "third-party notes on the M3DM paper"
CIF = "third-party note on the CIF paper"
CFM = "third-party audit of published 3D anomaly detectors"
MUSC = "README of MuSc-V2's code; its AUPRO has another definition (200 equal steps of score)"
DATA = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies", "tire": "MVTec 3D-AD, tire"}


@dataclass(frozen=True)
class Figure:
    """What a paper or its code says of a method.

    Args:
        method: name of ours.
        data: key of `DATA`, or the name of data that this page has no table of.
        setting: "full", "4shot", "2shot", "1shot" or "zero".
        values: as it is printed on the page, fractions.
        what: which form of the method, or the metrics where they are not image AUROC / AUPRO@0.3.
        source: where it was read.
    """

    method: str
    data: str
    setting: str
    values: str
    what: str
    source: str


FIGURES = (
    Figure("patchcore", "mvtec3d", "full", "0.785 / 0.876", "RGB, WideResNet-50-2", f'{BTF}, "RGB iNet"'),
    Figure("patchcore", "tire", "full", "0.724 / 0.899", "RGB, WideResNet-50-2", f'{BTF}, "RGB iNet"'),
    Figure("btf", "mvtec3d", "full", "0.873 / 0.964", "RGB + FPFH", BTF),
    Figure("btf", "tire", "full", "0.724 / 0.899", 'RGB alone, "RGB iNet"', BTF),
    Figure("btf", "mvtec3d", "4shot", "0.643 / 0.904", '"PatchCore + FPFH"', CIF),
    Figure("btf", "mvtec3d", "2shot", "0.614 / 0.886", '"PatchCore + FPFH"', CIF),
    Figure("btf", "mvtec3d", "1shot", "0.599 / 0.883", '"PatchCore + FPFH"', CIF),
    Figure("m3dm", "mvtec3d", "full", "0.932 / 0.959", "two banks and decision layer", M3DM),
    Figure("m3dm", "mvtec3d", "full", "0.945 / 0.964", "three banks", M3DM),
    Figure("m3dm", "tire", "full", "0.767 / 0.966", "RGB, DINO ViT-B/8", f"{M3DM}; not re-read, only the mean of its table was checked"),
    Figure("m3dm", "mvtec3d", "2shot", "0.765 / -", "", CIF),
    Figure("m3dm", "mvtec3d", "1shot", "0.739 / -", "", CIF),
    Figure("rad", "MVTec-AD (2D)", "full", "0.985", "pixel AUROC, one bank for all classes", "abstract of the RAD paper"),
    Figure("rad", "MVTec-AD (2D)", "1shot", "0.967", "pixel AUROC", "abstract of the RAD paper"),
    Figure("mrad", "16 data sets", "zero", "0.810 / 0.646", "MRAD-TF, CLIP, fitted on VisA", "third-party notes on the MRAD paper"),
    Figure("cif", "mvtec3d", "4shot", "0.776 / 0.896", "", CIF),
    Figure("cif", "mvtec3d", "2shot", "0.732 / 0.872", "", CIF),
    Figure("cif", "mvtec3d", "1shot", "0.720 / 0.861", "", CIF),
    Figure("cif", "eyecandies", "4shot", "0.751 / -", "", CIF),
    Figure("cif", "eyecandies", "2shot", "0.736 / -", "", CIF),
    Figure("cif", "eyecandies", "1shot", "0.695 / -", "", CIF),
    Figure("cfm", "mvtec3d", "full", "0.954 / 0.971", "", CFM),
    Figure("muscv2", "mvtec3d", "zero", "0.881 / 0.970", "RGB + 3D", MUSC),
    Figure("muscv2", "tire", "zero", "0.880 / 0.987", "RGB + 3D", MUSC),
    Figure("muscv2", "eyecandies", "zero", "0.839 / 0.901", "RGB + 3D", MUSC),
)


def find_figures(method: str, data: str, setting: str) -> list[Figure]:
    """Return the figures of this very data, else those of MVTec 3D-AD or what the paper used: an anchor, not a comparison."""
    own = [figure for figure in FIGURES if (figure.method, figure.setting) == (method, setting)]
    for place in (data, "mvtec3d"):
        if found := [figure for figure in own if figure.data == place]:
            return found
    return [figure for figure in own if figure.data not in DATA]
