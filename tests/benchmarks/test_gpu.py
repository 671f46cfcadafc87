"""Kernels are counted by the loop that they run in, and cycles summed, from the text of a compiled program."""

from benchmarks.gpu import CARDS, kernels, target
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


def test_kernels_are_counted_by_loop_and_name():
    assert {loop: dict(counted) for loop, counted in kernels(TEXT).items()} == {
        "": {"loop_add_fusion": 2},
        "? ×": {"copy": 1},
        "? × > 3 ×": {"loop_add_fusion": 1, "attend": 1, "__cublas$gemm": 1},
    }


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
