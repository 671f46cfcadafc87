"""Kernels are counted per loop, and cycles summed, from the text of a compiled program."""

from benchmarks.gpu import CARDS, by_loop, target
from benchmarks.program_text import kernels
from benchmarks.tpu import estimated_cycles

TEXT = """HloModule jit_f

%inner (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %gte.1 = f32[8]{0} get-tuple-element(%p.1), index=1
  %loop_add_fusion.3 = f32[8]{0} fusion(%gte.1), kind=kLoop, calls=%fused
  %call.7 = (f32[8]{0}, u8[0]{0}) custom-call(%gte.1), custom_call_target="__gpu$xla.gpu.triton", x={name = "attend"}
  %call.8 = f32[8]{0} custom-call(%loop_add_fusion.3), custom_call_target="__cublas$gemm", backend_config={}
  ROOT %tuple.1 = (s32[], f32[8]{0}) tuple(%gte.1, %loop_add_fusion.3)
}

%outer (p.2: (s32[], (f32[8]))) -> (s32[], f32[8]) {
  %p.2 = (s32[], f32[8]{0}) parameter(0)
  %while.1 = (s32[], f32[8]{0}) while(%p.2), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %copy.9 = f32[8]{0} copy(%while.1)
}

ENTRY %main (a.1: f32[8]) -> f32[8] {
  %a.1 = f32[8]{0} parameter(0)
  %loop_add_fusion = f32[8]{0} fusion(%a.1), kind=kLoop, calls=%fused
  %while.2 = (s32[], f32[8]{0}) while(%loop_add_fusion), condition=%c.2, body=%outer
  ROOT %loop_add_fusion.2 = f32[8]{0} fusion(%while.2), kind=kLoop, calls=%fused
}
"""


def test_kernels_are_listed_by_loop_with_the_bytes_of_their_arrays():
    found = {loop: [kernel[1:] for kernel in inside] for loop, inside in by_loop(kernels(TEXT)).items()}
    assert found == {
        "": [("loop_add_fusion", 64), ("loop_add_fusion", 4 + 32 + 32)],
        "? × > 3 ×": [("loop_add_fusion", 64), ("attend", 64), ("__cublas$gemm", 64)],
        "? ×": [("copy", 4 + 32 + 32)],
    }


FUSIONS = """HloModule jit_g

%cut (p.1: f32[4,8], p.2: s32[]) -> bf16[8] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  %flat = f32[4,8]{1,0} bitcast(%p.1)
  %row = f32[1,8]{1,0} dynamic-slice(%flat, %p.2, %p.2), dynamic_slice_sizes={1,8}
  ROOT %short = bf16[8]{0} convert(%row)
}

%put (p.1: f32[4,8], p.2: f32[8], p.3: s32[]) -> (f32[4,8], f32[8]) {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %p.2 = f32[8]{0} parameter(1)
  %p.3 = s32[] parameter(2)
  %row = f32[1,8]{1,0} bitcast(%p.2)
  %stack = f32[4,8]{1,0} dynamic-update-slice(%p.1, %row, %p.3, %p.3)
  %twice = f32[8]{0} add(%p.2, %p.2)
  ROOT %both = (f32[4,8]{1,0}, f32[8]{0}) tuple(%stack, %twice)
}

%begun (p.1: f32[4,8], p.2: s32[]) -> bf16[8] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  ROOT %loop_convert_fusion.5 = bf16[8]{0} fusion(%p.1, %p.2), kind=kLoop, calls=%cut
}

ENTRY %main (a.1: f32[4,8], a.2: s32[], a.3: f32[8]) -> bf16[8] {
  %a.1 = f32[4,8]{1,0} parameter(0)
  %a.2 = s32[] parameter(1)
  %a.3 = f32[8]{0} parameter(2)
  %put_fusion = (f32[4,8]{1,0}, f32[8]{0}) fusion(%a.1, %a.3, %a.2), kind=kLoop, calls=%put
  %fusion-start = ((f32[4,8]{1,0}, s32[]), bf16[8]{0}) fusion-start(%a.1, %a.2), calls=%begun
  ROOT %fusion-done = bf16[8]{0} fusion-done(%fusion-start)
}
"""


def test_a_fusion_moves_the_slices_that_it_cuts_and_puts_not_the_arrays_around_them():
    number, row = 4, 4 * 8
    assert kernels(FUSIONS) == [
        (
            "",
            "put_fusion",
            row + number + row + row,
        ),  # reads a row and an index, writes it into the stack, and twice it
        ("", "loop_convert_fusion", row + number + row // 2),
    ]


def test_cycles_are_those_of_the_longest_loop():
    text = TEXT.replace("calls=%fused", 'calls=%fused, backend_config={"estimated_cycles":"70"}')
    copy = "ROOT %copy.9 = f32[8]{0} copy(%while.1)"
    longer = text.replace(copy, copy + ', backend_config={"estimated_cycles":"90"}')
    assert (estimated_cycles(text), estimated_cycles(longer)) == (70, 90)  # the program itself has 140


def test_every_card_is_described_as_a_message_with_closed_braces():
    for card, (name, _, memory) in CARDS.items():
        text = target(card)
        assert (
            text.count("{") == text.count("}") == 3 and f'"{name}"' in text and f"device_memory_size: {memory}" in text
        )
