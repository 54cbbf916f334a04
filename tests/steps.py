"""Steps as text, each with one trait that planners trip over."""

from penstock.ir.text import parse
from penstock.ir.trace import Trace

__all__ = ["FED_BY_DEAD", "STEPS", "chain", "convolutions"]


def chain(layers: int, size: str = "4M", seconds: str = "1ms") -> Trace:
    """Each layer makes one saved value; gradients, loss and input are of one byte."""
    lines = [f"f f0 x:I1 -> h0:A{size}! {seconds}"]
    lines += [f"f f{n} h{n - 1} -> h{n}:A{size}! {seconds}" for n in range(1, layers)]
    lines += [f"f loss h{layers - 1} -> l:T1 0ms", f"b loss' l -> g{layers}:T1 0ms"]
    lines += [f"b b{n} g{n + 1} h{n} -> g{n}:T1 {seconds}" for n in reversed(range(layers))]
    return parse("\n".join(lines))


def convolutions(layers: int) -> Trace:
    """A chain of convolutions of a second, each with an input of 4 MiB; then a loss."""
    lines = ["f conv h0:I4M -> h1:A4M! 1s"]
    lines += [f"f conv h{n} -> h{n + 1}:A4M! 1s" for n in range(1, layers)]
    lines += [f"f loss h{layers} -> l:T1 0s", f"b loss' l -> g{layers}:T1 0s"]
    lines += [f"b conv' g{n + 1} h{n} -> g{n}:T1 1s" for n in reversed(range(layers))]
    return parse("\n".join(lines))


def skips() -> Trace:
    """Residual blocks: what enters a block is read again where the block ends."""
    forward = ["f stem x:I4M -> s0:A4M! 2ms"]
    backward = []
    for n in range(4):
        forward += [
            f"f in{n} s{n} -> h{n}:A8M! 3ms +2M",
            f"f out{n} h{n} s{n} -> s{n + 1}:A4M! 2ms",
        ]
        backward += [
            f"b in{n}' d{n} s{n} -> g{n}:T4M 4ms +2M",
            f"b out{n}' g{n + 1} h{n} -> d{n}:T8M 3ms",
        ]
    head = ["f loss s4 -> l:T1K 1ms", "b loss' l s4 -> g4:T4M 1ms"]
    return parse("\n".join([*forward, *head, *reversed(backward)]))


def in_place() -> Trace:
    """Relu in place, dropout, running statistics, and an op that must not run twice."""
    return parse("""
        f conv   x:I2M w:P1M   -> a:A8M        4ms
        f norm   a s:B1K       -> b:A8M! ~s    1ms
        f relu_  b             -> ~b           1ms
        f drop   b             -> c:A8M! m:A2M! 1ms ?
        f print  c             -> p:A1M        1ms !
        f fc     c p v:P4M     -> d:A8M!       3ms
        f relu_  d             -> ~d           1ms
        f loss   d             -> l:T1K        1ms
        b loss'  l d           -> e:T8M        1ms
        b fc'    e c v         -> f:T8M gv:G4M 6ms +1M
        b drop'  f m           -> h:T8M        1ms
        b norm'  h b           -> i:T8M        2ms
        b conv'  i x           -> gw:G1M       8ms
        o sgd    gw w          -> ~w           1ms
        o sgd    gv v          -> ~v           1ms
    """)


def stateful() -> Trace:
    """More model state than activations, used once forward, once backward, once to update."""
    layers = range(3)
    lines = []
    for n in layers:
        before = "x:I1M" if n == 0 else f"h{n - 1}"
        lines.append(f"f f{n} {before} w{n}:P16M -> h{n}:A2M! 8ms")
    lines += ["f loss h2 -> l:T1K 1ms", "b loss' l -> g3:T2M 1ms"]
    lines += [f"b b{n} g{n + 1} h{n} w{n} -> g{n}:T2M dw{n}:G16M 16ms" for n in reversed(layers)]
    lines += [f"o adam{n} dw{n} w{n} m{n}:S32M -> ~w{n} ~m{n} 4ms" for n in layers]
    return parse("\n".join(lines))


def tiny() -> Trace:
    """Nothing is worth moving."""
    return parse("f a x:I1K -> h:A1K! 1ms\nf b h -> l:T4 1ms\nb c l -> g:T4 1ms\nb a' g h -> 1ms")


FED_BY_DEAD = parse("""
    f a  x:T1M -> h:A4M!    1ms
    f b  h     -> k:A4M!    1ms
    f c  k     -> l:A4M     1ms
    b d  l     -> m:T1M     1ms
    b e  m k   -> g:T4M     1ms
    b f  g h   -> i:T4M     1ms
""")
"""k is made from h, and h from what dies with op 0."""

STEPS: dict[str, Trace] = {
    "chain": chain(12),
    "skips": skips(),
    "in place": in_place(),
    "stateful": stateful(),
    "tiny": tiny(),
}
