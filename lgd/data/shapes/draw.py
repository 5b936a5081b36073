"""Drawing one image: which objects a scene has, what of them is visible, their textures and shadows."""

from __future__ import annotations

import math

import numpy as np

from lgd.data.shapes.layers import Layer, clutter_layer, object_layer
from lgd.data.shapes.noise import random_colour, value_noise
from lgd.data.shapes.scenes import BACKGROUNDS
from lgd.data.shapes.spec import CLASS_NAMES, SCENES, SPLITS, Floats, Mask, ShapesSpec, SyntheticImage

# P(class | scene), rows normalised below. The companions add crosses on top of these.
_PRIOR = np.array(
    # ball  plate ring  box   tent  star  cross
    [
        [0.30, 0.01, 0.08, 0.17, 0.34, 0.06, 0.04],  # meadow
        [0.28, 0.01, 0.20, 0.14, 0.13, 0.22, 0.02],  # water
        [0.02, 0.12, 0.14, 0.49, 0.10, 0.05, 0.08],  # table
        [0.07, 0.06, 0.14, 0.45, 0.12, 0.10, 0.06],  # wall
    ]
)
_PRIOR /= _PRIOR.sum(1, keepdims=True)
_SCENE_P = np.array([0.34, 0.24, 0.20, 0.22])
# Objects an image, 1 to 8, for images that have any.
_COUNT_P = np.array([0.13, 0.19, 0.21, 0.17, 0.13, 0.08, 0.05, 0.04])
_EMPTY_P = 0.04
_COMPANION_P = 0.75
_EXTENT = (0.13, 0.5)
# Pixels: four cells of stride 8. What covers fewer can hardly be located from a feature map, by a teacher neither.
_SMALLEST = 32
_MIN_VISIBLE = 0.25


def _compose(rng: np.random.Generator, scene: int, size: int) -> list[Layer]:
    """Objects and clutter of an image, in no order; depth 0 is far, 1 and more is near."""
    layers: list[Layer] = []
    wanted = 0 if rng.random() < _EMPTY_P else 1 + int(rng.choice(8, p=_COUNT_P))

    def add(label: int, cy: float, cx: float, radius: float) -> None:
        depth = 0.6 * cy / size + 0.4 * rng.random()
        layers.append(object_layer(rng, label, cy, cx, radius, depth))

    while len(layers) < wanted:
        label = int(rng.choice(len(CLASS_NAMES), p=_PRIOR[scene]))
        # Centres keep a margin that is small next to large objects, so that some are cut by the border.
        cy, cx = (rng.uniform(0.06, 0.94, 2) * size).tolist()
        # The larger the nearer: things at the bottom of a photograph are close to the camera.
        lean = (cy / size - 0.5) * 0.5
        low, high = (math.log(e) for e in _extent_range(size))
        extent = math.exp(float(np.clip(rng.uniform(low, high) + lean, low, high)))
        radius = size * extent / 2
        add(label, cy, cx, radius)
        if CLASS_NAMES[label] == "plate" and len(layers) < 8 and rng.random() < _COMPANION_P:
            other = radius * rng.uniform(0.6, 0.95)
            side = rng.uniform(0, 2 * math.pi)
            reach = (radius + other) * rng.uniform(0.85, 1.15)
            low_pixel, high_pixel = 0.06 * size, 0.94 * size
            add(
                CLASS_NAMES.index("cross"),
                float(np.clip(cy + reach * math.sin(side), low_pixel, high_pixel)),
                float(np.clip(cx + reach * math.cos(side), low_pixel, high_pixel)),
                max(other, size * _extent_range(size)[0] / 2),
            )
    layers.extend(clutter_layer(rng, size) for _ in range(int(rng.integers(1, 7))))
    return layers


def _extent_range(size: int) -> tuple[float, float]:
    """Smallest and largest extent of an object, as parts of the image's side in pixels."""
    return max(_EXTENT[0], _SMALLEST / size), _EXTENT[1]


def _visible_layers(layers: list[Layer], size: int) -> tuple[list[Layer], dict[int, Mask], dict[int, float]]:
    """From near to far: the layers that stay, and by id(layer) each object's visible mask and its share.

    An object of which less than a quarter shows is left out of the image, not only of the annotations:
    otherwise training would punish detections of what can be seen.
    """
    taken = np.zeros((size, size), bool)
    kept: list[Layer] = []
    masks: dict[int, Mask] = {}
    shares: dict[int, float] = {}
    for layer in sorted(layers, key=lambda item: -item.depth):
        solid = layer.distance < 0
        image, window = layer.inside(size)
        if layer.label is not None:
            mask = np.zeros((size, size), bool)
            mask[image] = solid[window] & ~taken[image]
            share = mask.sum() / max(solid.sum(), 1)
            if share < _MIN_VISIBLE or mask.any(0).sum() < 3 or mask.any(1).sum() < 3:
                continue
            masks[id(layer)], shares[id(layer)] = mask, float(share)
        taken[image] |= solid[window]
        kept.append(layer)
    return kept[::-1], masks, shares


def _texture(rng: np.random.Generator, layer: Layer, backdrop: Floats, light: tuple[float, float]) -> Floats:
    """(h, w, 3) colours of an object's window, drawn alike for all classes but for the weak cue of balls."""
    u, v = layer.u, layer.v
    for _ in range(5):
        first = random_colour(rng, rng.random(), 0.0, 0.55, 0.6)
        # Too close to what lies behind, even a person could not see the outline.
        if float(np.abs(first - backdrop).sum()) > 0.55:
            break
    second = np.clip(first * rng.uniform(0.55, 1.35) + rng.uniform(-0.14, 0.14, 3), 0, 1).astype(np.float32)
    kind = rng.integers(4)
    frequency, phase, turn = rng.uniform(4, 11), rng.uniform(0, 6.3), rng.uniform(0, 3.2)
    along = (math.cos(turn) * u + math.sin(turn) * v) * frequency + phase
    if kind == 0:
        amount = 0.5 + 0.5 * np.tanh(3 * np.sin(along))
    elif kind == 1:
        across = (-math.sin(turn) * u + math.cos(turn) * v) * frequency
        amount = 0.5 + 0.5 * np.tanh(4 * np.sin(along) * np.sin(across))
    elif kind == 2:
        amount = 0.5 + 0.5 * np.clip(math.cos(turn) * u + math.sin(turn) * v, -1, 1)
    else:
        side = u.shape[0]
        amount = 0.5 + 0.9 * value_noise(rng, side, (3, 3), 3)
    colours = first + (np.float32(rng.uniform(0.3, 0.9)) * amount)[..., None] * (second - first)
    domed = rng.random() < (0.55 if layer.label == 0 else 0.25)
    if domed:
        shade = 0.62 + 0.5 * np.sqrt(np.clip(1.05 - (u - 0.3 * light[1]) ** 2 - (v - 0.3 * light[0]) ** 2, 0, 1))
    else:
        shade = 1 + 0.22 * np.clip(light[1] * u + light[0] * v, -1.2, 1.2)
    if rng.random() < 0.5:
        rim = np.clip(1 + layer.distance / max(1.2, 0.12 * layer.radius), 0, 1)
        shade = shade * (1 - rng.uniform(0.15, 0.45) * rim)
    return (colours * shade[..., None]).astype(np.float32)


def _paint_layer(
    rng: np.random.Generator, canvas: Floats, layer: Layer, light: tuple[float, float], softness: float
) -> None:
    """Paint a layer and its soft shadow over a (size, size, 3) canvas, in place."""
    size = canvas.shape[0]
    strength = rng.uniform(0.2, 0.55)
    throw = min(0.16 * layer.radius, 0.05 * size) + 0.5
    image, window = layer.inside(size)
    if layer.label is not None:
        shift_y, shift_x = round(-light[0] * throw), round(-light[1] * throw)
        shadow = Layer(None, layer.y + shift_y, layer.x + shift_x, 0, 0, layer.distance, layer.u, layer.v)
        image_s, window_s = shadow.inside(size)
        dark = np.clip(0.5 - layer.distance[window_s] / (2 * softness), 0, 1)
        canvas[image_s] *= (1 - np.float32(strength) * dark)[..., None]
    region = canvas[image]
    if region.size == 0:
        return
    alpha = np.clip(0.5 - layer.distance[window], 0, 1)[..., None]
    backdrop = region.mean((0, 1))
    if layer.label is None:
        # Clutter resembles the scene rather than the objects.
        tint = backdrop * rng.uniform(0.45, 1.5) + rng.uniform(-0.1, 0.1, 3)
        colours = np.clip(tint, 0, 1).astype(np.float32) * (1 + 0.15 * layer.u[window])[..., None]
    else:
        colours = _texture(rng, layer, backdrop, light)[window]
    canvas[image] = region + alpha * (colours - region)


def draw(spec: ShapesSpec, split: str, index: int) -> SyntheticImage:
    """Draw one image, a pure function of (spec.seed, split, index, spec.size)."""
    size = spec.size
    rng = np.random.Generator(np.random.PCG64([spec.seed, SPLITS.index(split), index]))
    scene = int(rng.choice(len(SCENES), p=_SCENE_P))
    canvas = np.ascontiguousarray(BACKGROUNDS[SCENES[scene]](rng, size), np.float32)
    turn = rng.uniform(0, 2 * math.pi)
    light = (math.sin(turn), math.cos(turn))
    layers, masks, shares = _visible_layers(_compose(rng, scene, size), size)
    softness = size * rng.uniform(0.012, 0.04)
    for layer in layers:
        _paint_layer(rng, canvas, layer, light, softness)

    # Here, not at the top: scipy is a tenth of the time in which a worker starts, and few trainings need it.
    from scipy.ndimage import gaussian_filter1d

    across = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(0.0, 0.3)
    lit = 1 + slope * (light[0] * across[:, None] + light[1] * across[None, :])
    lit = lit * (1 - rng.uniform(0, 0.16) * (across[:, None] ** 2 + across[None, :] ** 2))
    canvas *= (rng.uniform(0.8, 1.15) * lit)[..., None].astype(np.float32)
    blur = rng.uniform(0.25, 0.85) * math.sqrt(size / 128)
    for axis in (0, 1):
        canvas = gaussian_filter1d(canvas, blur, axis=axis, mode="nearest", truncate=3.0)
    grain = rng.uniform(0.008, 0.035)
    canvas += np.float32(grain) * rng.standard_normal(canvas.shape, dtype=np.float32)
    pixels = np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)

    seen = [layer for layer in layers if layer.label is not None]
    return SyntheticImage(
        pixels=pixels,
        scene=SCENES[scene],
        labels=tuple(layer.label for layer in seen if layer.label is not None),
        masks=np.stack([masks[id(layer)] for layer in seen]) if seen else np.zeros((0, size, size), bool),
        visible=np.array([shares[id(layer)] for layer in seen]),
    )
