"""Street-like scenes with a long tail, drawn instead of read. Shapes and colours: scenes.yaml.

A scene is a street seen by a driver. Rays from a vanishing point divide it into road, pavement,
facades and sky; things (cars, pedestrians, signs, ...) stand on it in perspective; in some images
the bonnet of the driver's own car hides a strip at the bottom, labelled 255.

The pixel share of class k over a data set is proportional to ``imbalance ** (-k / (L - 1))``, the
exponential profile of long-tailed benchmarks. It is met by construction, not by calibration:
every shape is the level set of a field, and the level is chosen so that it holds the number of
pixels it is given. Everything is drawn from front to back, the rarest class first, so no later
shape takes pixels away. How often a class appears follows a low-discrepancy sequence over the
images, so a few hundred of them suffice to meet the shares.

Colours say little: facades, cars, clothes and signs share their paints, asphalt and concrete
their greys, and the light changes from scene to scene. Shape, texture and place decide.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from patlib.checks import check_integer, check_number
from patlib.data.images import check_image_size

__all__ = ["SceneGenerator", "class_names"]

_VOID = 255  # the label of ignored pixels
_TABLES = yaml.safe_load(Path(__file__).with_name("scenes.yaml").read_text(encoding="utf-8"))
_PAINTS = np.array(_TABLES["paints"], np.float32)
_MATERIALS = _TABLES["materials"]
_GROUND = ("road", "pavement", "grass")
_FRONTS = ("wall", "fence")  # between the ground and the facades, each on its own side
_REGIONS = (*_GROUND, *_FRONTS, "building", "sky")


class _Thing:
    """A thing of scenes.yaml; the fields are explained there.

    Attributes:
        fill: share of the box that the parts cover.
    """

    def __init__(
        self,
        metres: float,
        aspect: float,
        parts: list[list[Any]],
        on_road: bool = False,
        rough: float = 0.0,
        leafy: bool = False,
    ):
        self.metres, self.aspect, self.on_road = metres, aspect, on_road
        self.rough, self.leafy = rough, leafy
        kinds, *numbers, self.colours = zip(*parts, strict=True)
        self._x, self._y, self._rx, self._ry = np.array(numbers, np.float64)[:, :, None, None]
        kinds = np.array(kinds)[:, None, None]
        self._taper = 0.35 * (kinds == "wedge")
        self._round = (kinds == "disc") | (kinds == "ring")
        self._rim = np.where(kinds == "ring", 0.16, 1.0)
        grid = (np.arange(64) + 0.5) / 32 - 1
        inside = self.distances(grid, grid, 1.0, 1.0).min(axis=0) < 0
        self.fill = float(np.count_nonzero(inside)) / inside.size

    def distances(self, y: NDArray, x: NDArray, half_height: float, half_width: float) -> NDArray:
        """Signed distance to every part, negative inside: (parts, len(y), len(x)).

        ``y`` and ``x`` are relative to the box, the distances in the unit of the half sizes.
        """
        u = (x - self._x) / self._rx
        v = (y[:, None] - self._y) / self._ry
        rx, ry = self._rx * half_width, self._ry * half_height
        inner = np.minimum(rx, ry)
        box = np.maximum((np.abs(u) - 1 + self._taper * (1 - v)) * rx, (np.abs(v) - 1) * ry)
        d = np.where(self._round, (np.sqrt(u * u + v * v) - 1) * inner, box)
        rim = self._rim * inner
        return np.abs(d + rim) - rim  # hollows a ring, leaves a solid as it is


_THINGS = {name: _Thing(**thing) for name, thing in _TABLES["things"].items()}

_GOLDEN = (math.sqrt(5) - 1) / 2
_BLOCK = 20  # images whose order is shuffled, for each class on its own
_VOID_PRESENCE, _VOID_SHARE = 0.4, 0.02  # of the images, of all pixels
_CAMERA = 1.5  # metres above the road
_FACADES = 12  # on each side


def class_names(num_classes: int) -> tuple[str, ...]:
    """Names of the classes, from the commonest to the rarest; ``num_classes`` is 3 to 20."""
    smallest = _TABLES["classes"]
    num_classes = check_integer("num_classes", num_classes, minimum=3, maximum=len(smallest))
    return tuple(name for name, n in smallest.items() if n <= num_classes)


class SceneGenerator:
    """Draws the scenes of one data set, any of them at any time.

    A scene depends on the settings, the seed and its index alone. 200 consecutive scenes or more
    meet the shares: within a few per cent, or as closely as whole things allow where the rarest
    class comes less than about 20 times (within 20 %, best if the first index is a multiple of
    20). A handful of scenes need not contain the rarest classes.

    Args:
        scene_seed: which data set, an integer >= 0.
        image_size: (H, W) in pixels, 32 or more each.
        num_classes: 3 to 20, see :func:`class_names`.
        imbalance: pixels of the commonest class for one of the rarest, over the data set, >= 1.
            Ignored pixels are not counted.
        rare_size: typical number of pixels of one thing of the rare classes, the last third; up
            to a tenth of the image. Things of the other classes are larger, typically a thirtieth
            of the image for the commonest. How often things appear follows from their size and
            the share of their class: many small ones make a crowded street.

    Attributes:
        class_names: from the commonest to the rarest.
        shares: expected share of each class among the valid pixels, (num_classes,).

    Raises:
        ValueError: an argument is out of range, or a thing of the rarest class would appear in
            fewer than one of 30 images, too seldom to meet its share.
    """

    def __init__(
        self,
        scene_seed: int = 0,
        image_size: tuple[int, int] = (96, 128),
        num_classes: int = 8,
        imbalance: float = 100.0,
        rare_size: float = 40,
    ):
        self.class_names = class_names(num_classes)
        self.seed = check_integer("scene_seed", scene_seed, minimum=0)
        self.image_size = height, width = check_image_size(image_size)
        imbalance = check_number("imbalance", imbalance, minimum=1)
        # At most a tenth of the image.
        rare_size = check_number("rare_size", rare_size, above=0, maximum=height * width // 10)
        profile = imbalance ** (-np.arange(num_classes) / (num_classes - 1))
        self.shares = profile / profile.sum()
        self._plan(rare_size)
        self._rows = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
        self._columns = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5)

    def _plan(self, rare_size):
        """Decide how large the things of each class are and how often they come."""
        pixels = self.image_size[0] * self.image_size[1]
        num_classes = len(self.shares)
        # From the rarest to the commonest: the order in which they are drawn, front to back.
        self._things = [k for k in range(num_classes)[::-1] if self.class_names[k] in _THINGS]
        largest = max(rare_size, pixels / 30)
        first, self._tail = self._things[-1], num_classes - num_classes // 3
        rank = (self._tail - np.array(self._things)) / max(self._tail - first, 1)
        rank = np.clip(rank, 0, 1)  # 0 for the rare classes, 1 for the commonest thing
        self._sizes = rare_size * (largest / rare_size) ** rank
        per_image = self.shares[self._things] * pixels * (1 - _VOID_SHARE)
        rates = per_image / self._sizes
        if rates[0] < 1 / 30:
            raise ValueError(
                f"rare_size must be at most {30 * per_image[0]:.3g} with this image_size and "
                f"imbalance, got {rare_size:g}: with {per_image[0]:.2g} pixels an image, fewer "
                f"than 7 things of {self.class_names[-1]!r} would appear in 200 images"
            )
        # Things come in groups: several in some images, none in others.
        self._groups = np.ceil(rates / 0.7).astype(int)
        self._presence = np.append(rates / self._groups, _VOID_PRESENCE)
        self._phases = _generator(self.seed, 0).random((2, len(self._presence)))
        self._block = None  # the order of the images in the block drawn last

    def _schedule(self, index):
        """A number in [0, 1) for each thing class that comes in image ``index``, NaN for others.

        The void comes last. The images a class comes in are spread as evenly as its rate allows
        (but shuffled within a block, for each class on its own), and so are its numbers.
        """
        number, place = divmod(index, _BLOCK)
        block = self._block
        if block is None or block[0] != number:
            order = _generator(self.seed, 1, number).random((len(self._presence), _BLOCK))
            block = self._block = (number, order.argsort(axis=1, kind="stable"))
        turn = number * _BLOCK + block[1][:, place]
        before = np.floor(self._phases[0] + turn * self._presence)
        after = np.floor(self._phases[0] + (turn + 1) * self._presence)
        return np.where(after > before, (self._phases[1] + after * _GOLDEN) % 1, np.nan)

    def draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw scene ``index`` (0 or more).

        Returns:
            The image, uint8 (height, width, 3), and its labels, uint8 (height, width), 255 where
            ignored.
        """
        index = check_integer("index", index, minimum=0)
        return _Scene(self, _generator(self.seed, 2, index)).draw(self._schedule(index))


class _Scene:
    """One scene while it is drawn; ``colour_index`` is each pixel's row of ``colours``."""

    def __init__(self, generator, rng):
        self.generator, self.rng = generator, rng
        self.height, self.width = generator.image_size
        self.labels = np.full(generator.image_size, _VOID, dtype=np.uint8)
        self.colour_index = np.zeros(generator.image_size, dtype=np.intp)
        self.free = np.ones(generator.image_size, dtype=bool)
        self.colours = []

    def draw(self, schedule):
        self.place_street()
        *things, bonnet = schedule.tolist()
        if not math.isnan(bonnet):
            self.draw_bonnet(bonnet)
        for thing, number in enumerate(things):
            if not math.isnan(number):
                self.draw_group(thing, number)
        self.draw_street()
        return self.render(), self.labels

    def mix(self, *colours):
        """Add colours, return the row of the first."""
        self.colours.extend(colours)
        return len(self.colours) - len(colours)

    def place_street(self):
        """The shares of the regions, the vanishing point and where each pixel is seen from it."""
        generator, rng = self.generator, self.rng
        names = generator.class_names
        self.regions = [name for name in _REGIONS if name in names]
        shares = np.array([generator.shares[names.index(name)] for name in self.regions])
        shares *= 0.7 + 0.6 * rng.random(len(shares))
        self.region_shares = shares / shares.sum()
        ground = float(sum(self.region_shares[: sum(name in _GROUND for name in self.regions)]))
        u = rng.random(4).tolist()
        self.horizon = self.height * min(max(1 - ground / 0.8, 0.1), 0.85)
        middle = self.width * (0.35 + 0.3 * u[0])
        self.down = generator._rows - np.float32(self.horizon)
        self.sideways = generator._columns - np.float32(middle)
        # The road bends far away, and the driver keeps to one side of it.
        bend, lean = self.width * 0.3 * (u[1] - 0.5), 0.3 * (u[2] - 0.5)
        near = np.minimum(np.abs(self.down) / np.float32(self.height - self.horizon), 1)
        offset = np.float32(bend) * near * (2 - near)
        self.centre = (middle + offset).ravel()
        across = self.sideways - offset
        across = np.abs(across) + np.float32(lean) * across + np.float32(1e-3)
        # -1 straight down, 0 at the horizon, 1 straight up: in the order of the angle.
        self.angle = -self.down / (across + np.abs(self.down))
        # Half the width of the road, and of all the ground, one pixel below the horizon.
        some = np.sort(self.angle[::4, ::4], axis=None)
        ends = [some[int(share * (some.size - 1))] for share in (self.region_shares[0], ground)]
        self.road_edge, self.ground_edge = (-1 / min(float(end), -0.2) - 1 for end in ends)
        # Coordinates for textures: across the lane, along the road, up the facades.
        self.lane = across / np.maximum(self.down, np.float32(0.5))
        self.along = np.float32(0.1 * self.height) / np.maximum(self.down, np.float32(0.5))
        self.up = -self.down / np.maximum(np.abs(self.sideways), 1)
        self.clouds = self.smooth_noise()

    def smooth_noise(self):
        """Noise in [0, 1], bilinear between random values on a coarse grid: (height, width)."""
        grid = self.rng.random((8, 8)).astype(np.float32)
        for size in (self.width, self.height):
            at = np.arange(size, dtype=np.float32) * np.float32(7 / size)
            low = at.astype(int)
            grid = (grid[low] + (grid[low + 1] - grid[low]) * (at - low)[:, None]).T
        return grid.T

    def draw_bonnet(self, number):
        """The driver's own car, at the bottom."""
        share = _VOID_SHARE / _VOID_PRESENCE * (0.6 + 0.8 * number)
        x = self.generator._columns / self.width - (0.4 + 0.2 * self.rng.random())
        field = 0.6 * x * x - self.generator._rows / self.height
        taken = field <= _level(field, round(share * field.size))
        tone = 40 + 120 * self.rng.random()
        self.free &= ~taken
        self.colour_index[taken] = self.mix((tone, tone, tone))

    def draw_group(self, thing, number):
        """The things of one class: together as many pixels as ``number`` says."""
        label, size = self.generator._things[thing], float(self.generator._sizes[thing])
        group = int(self.generator._groups[thing])
        spread = min(group - 1, 4)
        number *= 2 * spread + 1
        count = group - spread + int(number)
        owed, vary = 0.0, 0.35 if label >= self.generator._tail else 0.65
        # What is hidden by things in front comes as further things.
        for i in range(2 * count + 4):
            if i < count:
                owed += size * (1 + vary * (2 * ((number + i * _GOLDEN) % 1) - 1))
            elif owed < max(size / 4, 1):
                break
            owed -= self.draw_thing(label, max(round(min(owed, 1.7 * size)), 1))

    def draw_thing(self, label, pixels):
        """Draw a thing, return how many of its ``pixels`` found a place."""
        thing = _THINGS[self.generator.class_names[label]]
        height = min(math.sqrt(pixels / (thing.fill * thing.aspect)), 0.8 * self.height)
        width = min(pixels / (thing.fill * height), 0.8 * self.width)
        best = 0.0
        for attempt in range(14):
            u = self.rng.random(5).tolist()
            if attempt < 8:
                foot, x = self.place_thing(thing, height, attempt >= 3, u)
            elif attempt < 12 or best > 0.4:  # anywhere on the ground
                foot, x = self.horizon + u[0] * (self.height - self.horizon), u[1] * self.width
            else:  # anywhere
                foot, x = u[0] * self.height, u[1] * self.width
            foot = min(max(foot, height + u[2]), self.height - u[2])
            left = min(max(x - width / 2, u[3]), self.width - width - u[3])
            top = foot - height
            box = (
                slice(max(int(top) - 1, 0), min(int(foot) + 2, self.height)),
                slice(max(int(left) - 1, 0), min(int(left + width) + 2, self.width)),
            )
            free = self.free[box]
            room = np.count_nonzero(free) / free.size
            if room > best:
                best, chosen = room, (box, top, left)
            if room > 0.9:
                break
        if best == 0:
            return 0
        box, top, left = chosen
        free = self.free[box]
        y = (np.arange(box[0].start, box[0].stop) + (0.5 - top)) * (2 / height) - 1
        x = (np.arange(box[1].start, box[1].stop) + (0.5 - left)) * (2 / width) - 1
        distances = thing.distances(y, x, height / 2, width / 2)
        # Ragged, if only to break ties; and never much fatter than its shape.
        field = distances.min(axis=0)
        field += (0.05 + thing.rough * height) * (self.rng.random(field.shape) - 0.5)
        level = min(float(_level(field[free], pixels)), 0.8 + 0.1 * height)
        taken = free & (field <= level)
        # The last part that a pixel lies in, else the nearest.
        front = np.arange(len(distances))[:, None, None] * 1e-3
        part = np.argmin(np.maximum(distances, 0) - front, axis=0)
        self.colour_index[box][taken] = part[taken] + self.mix(*self.thing_colours(thing))
        self.labels[box][taken] = label
        self.free[box][taken] = False
        return int(np.count_nonzero(taken))

    def place_thing(self, thing, height, crowded, u):
        """Foot and middle of a thing in perspective: how tall it looks says how far away it is.

        Where it is crowded, things stand nearer than they look.
        """
        on_road = thing.on_road or u[1] < 0.15
        depth = height * _CAMERA / thing.metres * (0.8 + 1.2 * u[0] * u[0])
        if crowded:
            nearest = self.height - self.horizon
            if not on_road:
                nearest = min(nearest, 0.5 * self.width / self.road_edge)
            depth += u[4] * max(nearest - depth, 0)
        if on_road:
            lateral = self.road_edge * (1.8 * u[2] - 0.9)
        else:
            lateral = 0.95 * self.road_edge
            lateral += u[2] * max(1.1 * self.ground_edge - lateral, 0.1)
            lateral *= 1 if u[3] < 0.5 else -1
        foot = self.horizon + depth
        return foot, float(self.centre[min(int(foot), self.height - 1)]) + lateral * depth

    def thing_colours(self, thing):
        u = self.rng.random(3).tolist()
        if thing.leafy:
            a = np.array((60 + 110 * u[0] * u[0], 100 + 45 * u[1], 48 + 30 * u[2]))
            own = {"a": a, "b": 0.8 * a}
        else:
            own = {"a": _PAINTS[int(u[0] * len(_PAINTS))], "b": _PAINTS[int(u[1] * len(_PAINTS))]}
        return [own[name] if name in own else _MATERIALS[name] for name in thing.colours]

    def draw_street(self):
        """Divide the pixels that are left among the regions, by angle, each its exact number."""
        names = self.generator.class_names
        roof = self.place_facades()
        order = np.where(self.angle > 0, self.angle * roof, self.angle)
        values = order[self.free]
        ends = np.rint(np.cumsum(self.region_shares) * values.size).astype(int)
        labels = np.empty(order.shape, np.uint8)
        colour_index = np.empty(order.shape, np.intp)

        def cover(name, taken):
            labels[taken] = names.index(name)
            np.copyto(colour_index, getattr(self, f"paint_{name}")(), where=taken)

        # Bands from the sky down, the facades reaching to the ground at first.
        bands = [i for i, name in enumerate(self.regions) if name not in _FRONTS][::-1]
        levels = _level(values, ends[bands])
        levels[0] = np.inf  # the first covers everything
        for i, level in zip(bands, levels, strict=True):
            cover(self.regions[i], order <= level)
        # A wall or a fence hides the foot of the facades, each on its own side.
        right = (self.sideways > 0) == (self.rng.random() < 0.5)
        for name, count in zip(self.regions, np.diff(ends, prepend=0), strict=True):
            if name in _FRONTS:
                field = order + 4 * (right == (name == "wall"))
                field = np.where(self.free & (labels == names.index("building")), field, 9)
                cover(name, field <= _level(field, count))
        self.labels[self.free] = labels[self.free]
        self.colour_index[self.free] = colour_index[self.free]

    def place_facades(self):
        """Choose the facade of each column; return a factor on the angle of its roof, (W,)."""
        u = self.rng.random(2).tolist()
        distance = np.abs(self.sideways[0]) / self.width
        number = ((0.5 + 0.4 * u[0]) / (distance + 0.06) + u[1]).astype(int)
        self.facade = np.minimum(number, _FACADES - 1) + _FACADES * (self.sideways[0] > 0)
        roof = (0.7 + 0.7 * self.rng.random(2 * _FACADES)).astype(np.float32)
        return roof[self.facade]

    def paint_road(self):
        u = self.rng.random(4).tolist()
        tone = 68 + 52 * u[0]
        road = self.mix((tone, tone, tone + 6 * u[1]), (205, 205, 198))
        lane = self.lane * np.float32(1 / self.road_edge)
        dash = _fraction(self.along * (3 + 2 * u[2]) + u[3]) < 0.5
        return road + (((lane < 0.035) & dash) | (np.abs(lane - np.float32(0.9)) < 0.02))

    def paint_pavement(self):
        u = self.rng.random(3).tolist()
        slab = (92 + 58 * u[0]) * np.array((1, 0.98, 0.9 + 0.08 * u[1]))
        return self.mix(slab, 0.82 * slab) + (_fraction(self.along * 8 + u[2]) < 0.25)

    def paint_grass(self):
        u = self.rng.random(2).tolist()
        blade = np.array((80 + 70 * u[0], 118 + 30 * u[1], 62))
        return self.mix(blade, 0.85 * blade) + (self.rng.random(self.labels.shape) < 0.4)

    def paint_wall(self):
        u = self.rng.random(2).tolist()
        stone = 0.6 * _PAINTS[int(u[0] * len(_PAINTS))] + 40
        return self.mix(stone, 0.8 * stone) + (_fraction(self.up * 7 + u[1]) < 0.3)

    def paint_fence(self):
        board = 0.6 * _PAINTS[int(self.rng.random() * len(_PAINTS))] + 20
        return self.mix(board, 0.5 * board) + np.arange(self.width) // 2 % 2

    def paint_building(self):
        rng = self.rng
        u = rng.random(4).tolist()
        tones = 90 + 80 * rng.random((2 * _FACADES, 1))
        walls = 0.55 * self.some_paints(2 * _FACADES) + 0.45 * tones
        walls[_FACADES:] *= 0.78  # in the shade
        wall = self.mix(*walls)
        window = self.mix(*(0.45 * walls + 0.25 * np.array(_MATERIALS["glass"])))
        # Bays are evenly spaced along the street; far away they are too narrow to be seen.
        distance = np.abs(self.sideways[0])
        near = distance > math.sqrt(2.5 * self.width)
        bays = 0.9 * self.width / np.maximum(distance, 1) + u[0]
        glass = (near & (_fraction(bays) > 0.4)) & (_fraction(self.up * 2.2 + u[1]) > 0.45)
        paint = self.facade + np.where(glass, window, wall)
        # Shops on the ground floor, in the paints of cars and signs.
        shop = self.mix(*self.some_paints(16))
        number = (bays / 2 + 8 * (self.sideways[0] > 0)).astype(int) % 16
        open_ = near & (rng.random(16) < 0.6)[number]
        return np.where(open_ & (self.up < 0.15 * u[2] - 0.05), shop + number, paint)

    def some_paints(self, count):
        return _PAINTS[(self.rng.random(count) * len(_PAINTS)).astype(int)]

    def paint_sky(self):
        u = self.rng.random(3).tolist()
        steps = np.linspace(0, 1, 24)[:, None]
        high = np.array((90, 140, 205)) * (1 - u[0]) + (150 + 60 * u[1]) * u[0]
        low = np.array((205, 215, 225)) * (1 - u[2]) + np.array((235, 200, 170)) * u[2]
        first = self.mix(*(high * (1 - steps) + low * steps))
        height = self.generator._rows / max(self.horizon, 0.2 * self.height)
        step = 15 * height + 24 * (self.clouds - np.float32(0.45))
        return first + np.clip(step, 0, 23).astype(np.intp)

    def render(self):
        rng = self.rng
        gain = (0.75 + 0.4 * rng.random()) * (0.94 + 0.12 * rng.random(3))
        colours = (np.array(self.colours) * gain).astype(np.float32)
        image = colours.take(self.colour_index, axis=0)
        image *= (0.85 + 0.3 * self.clouds[::-1, ::-1])[:, :, None]
        # A lens blurs a little before the sensor adds its noise.
        for x in (image, image.transpose(1, 0, 2)):
            beside = x[:-2] + x[2:]
            beside *= np.float32(0.15)
            x[1:-1] *= np.float32(0.7)
            x[1:-1] += beside
        noise = rng.integers(0, 256, image.shape, dtype=np.uint8).astype(np.float32)
        noise -= np.float32(127.5)
        noise *= np.float32(0.07)
        image += noise
        image += np.float32(0.5)  # rounds, as the cast cuts off
        return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _generator(*key):
    return np.random.Generator(np.random.PCG64(key))


def _level(values, counts):
    """The level that ``counts`` of ``values`` do not exceed; -inf for a count of 0."""
    counts = np.asarray(counts)
    if values.size == 0:
        return np.full(counts.shape, -np.inf)
    kth = np.clip(counts, 1, values.size) - 1
    return np.where(counts > 0, np.partition(values, kth, axis=None)[kth], -np.inf)


def _fraction(x):
    return x - np.floor(x)
