// Chains of segments, states in bf16, and pools whose byte offsets need more than 32 bits: what
// CausalConv1d and SelectiveScan share (see Segment in ops.h).
#include <sys/mman.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/isa_fixture.h"

namespace vivarium::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Rows of a layer's convolution and scan, with both states in each slot of one pool, as a model has
// them: [conv, f32][ssm, state_dtype].
class Layer {
 public:
  Layer(int64_t num_channels, int32_t state_size, int32_t conv_width, int64_t tokens, DType dtype)
      : channels(num_channels),
        d_state(state_size),
        width(conv_width),
        num_tokens(tokens),
        state_dtype(dtype),
        ssm_elements((num_channels + kChannelTile - 1) / kChannelTile * state_size * kChannelTile),
        conv_bytes(RoundUp((conv_width - 1) * num_channels * 4)),
        slot_bytes(conv_bytes + RoundUp(ssm_elements * static_cast<int64_t>(DTypeBytes(dtype)))),
        x(tokens * num_channels),
        z(tokens * num_channels),
        dt(tokens * num_channels),
        bc(tokens * 2 * state_size),
        weight(conv_width * num_channels),
        a(ssm_elements),
        dt_bias(num_channels) {
    RandomValues random(31);
    for (GuardedArray* array : {&x, &z, &dt, &bc, &weight})
      random.Fill(array->data(), array->size());
    for (int64_t c = 0; c < channels; ++c) dt_bias[c] = random.Uniform(-6.0f, 2.0f);
    for (int64_t i = 0; i < ssm_elements; ++i) a[i] = -random.Uniform(0.1f, 8.0f);
  }

  // Rows of the convolution's input go through the convolution, then through the scan: [num_tokens,
  // channels]; rows of no segment are NaN.
  std::vector<float> Run(Backend* backend, const std::vector<Segment>& segments, std::byte* slots,
                         int64_t slot_distance) {
    std::vector<float> out(static_cast<size_t>(num_tokens * channels), kNan);
    CausalConv1dParams conv{};
    conv.x = x.data();
    conv.x_stride = conv.out_stride = channels;
    conv.weight = weight.data();
    conv.states = reinterpret_cast<float*>(slots);
    conv.slot_stride = slot_distance / 4;
    conv.out = out.data();
    conv.segments = segments.data();
    conv.num_segments = static_cast<int64_t>(segments.size());
    conv.channels = channels;
    conv.width = width;
    backend->CausalConv1d(conv);
    SelectiveScanParams scan{};
    scan.x = scan.y = out.data();
    scan.z = z.data();
    scan.dt = dt.data();
    scan.x_stride = scan.y_stride = scan.z_stride = scan.dt_stride = channels;
    scan.b = bc.data();
    scan.c = bc.data() + d_state;
    scan.bc_stride = 2 * d_state;
    scan.a = a.data();
    scan.dt_bias = dt_bias.data();
    scan.d_skip = dt_bias.data();
    scan.states = slots + conv_bytes;
    scan.state_dtype = state_dtype;
    scan.slot_stride = slot_distance / static_cast<int64_t>(DTypeBytes(state_dtype));
    scan.segments = segments.data();
    scan.num_segments = conv.num_segments;
    scan.channels = channels;
    scan.d_state = d_state;
    backend->SelectiveScan(scan);
    return out;
  }
  std::vector<float> Run(Backend* backend, const std::vector<Segment>& segments,
                         std::vector<std::byte>* slots) {
    return Run(backend, segments, slots->data(), slot_bytes);
  }

  // Slots of a byte that no state has at every place.
  std::vector<std::byte> Pool(int32_t num_slots) const {
    return std::vector<std::byte>(static_cast<size_t>(num_slots * slot_bytes), std::byte{0xcd});
  }
  // A state that the op itself made: slot `slot` after the first rows from zero.
  void FillSlot(Backend* backend, int32_t slot, std::vector<std::byte>* slots) {
    Run(backend, {{0, 3, kPadSlot, slot}}, slots);
  }
  std::vector<std::byte> Slot(const std::vector<std::byte>& slots, int32_t slot) const {
    const auto begin = slots.begin() + slot * slot_bytes;
    return {begin, begin + slot_bytes};
  }

  static int64_t RoundUp(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  int64_t channels;
  int32_t d_state, width;
  int64_t num_tokens;
  DType state_dtype;
  int64_t ssm_elements, conv_bytes, slot_bytes;
  GuardedArray x, z, dt, bc, weight, a, dt_bias;
};

class SegmentChainTest : public IsaTest {
 protected:
  void CheckChains(int64_t channels, int32_t d_state, int32_t width, DType dtype);
};
VIVARIUM_FOR_EACH_ISA(SegmentChainTest);

// Every state of a chain has the bits that it has where a step ends there, and so have the outputs.
void SegmentChainTest::CheckChains(int64_t channels, int32_t d_state, int32_t width, DType dtype) {
  SCOPED_TRACE(std::to_string(channels) + " channels, d_state " + std::to_string(d_state) +
               ", width " + std::to_string(width) + ", " + std::string(DTypeName(dtype)));
  constexpr int32_t kTokens = 61;
  Layer layer(channels, d_state, width, kTokens, dtype);
  const auto backend = MakeBackend(2);
  for (const int32_t read : {kPadSlot, 0}) {
    // Cut at 1, 2, 17 (kept by nobody), 33, 34 and at the end, into the slot that was read.
    const std::vector<Segment> chain = {
        {0, 1, read, 1},
        {1, 1, kPreviousSegment, 2},
        {2, 15, kPreviousSegment, kPadSlot},
        {17, 16, kPreviousSegment, 4},
        {33, 1, kPreviousSegment, 3},
        {34, 20, kPreviousSegment, 0},
        {54, 3, kPadSlot, 5},  // a neighbour by itself, then one of two segments
        {57, 2, kPadSlot, kPadSlot},
        {59, 2, kPreviousSegment, 6}};
    std::vector<std::byte> slots = layer.Pool(8);
    layer.FillSlot(backend.get(), 0, &slots);
    std::vector<std::byte> expected_slots = slots;
    const std::vector<float> out = layer.Run(backend.get(), chain, &slots);

    // The same, a batch for each segment, the state in slot 7 in between.
    std::vector<float> expected;
    for (const Segment& segment : chain) {
      Segment alone = segment;
      if (segment.read_slot == kPreviousSegment) alone.read_slot = 7;
      alone.write_slot = 7;
      const std::vector<float> rows = layer.Run(backend.get(), {alone}, &expected_slots);
      expected.insert(expected.end(), rows.begin() + segment.token_begin * channels,
                      rows.begin() + (segment.token_begin + segment.num_tokens) * channels);
      if (segment.write_slot == kPadSlot) continue;
      std::copy_n(expected_slots.begin() + 7 * layer.slot_bytes, layer.slot_bytes,
                  expected_slots.begin() + segment.write_slot * layer.slot_bytes);
    }
    ASSERT_TRUE(SameBits(out.data(), expected.data(), kTokens * channels));
    for (int32_t slot = 0; slot < 7; ++slot) {
      std::vector<std::byte> found = layer.Slot(slots, slot);
      ASSERT_EQ(found, layer.Slot(expected_slots, slot)) << "slot " << slot;
    }
  }
}

TEST_P(SegmentChainTest, EveryStateOfAChainIsAStepsEnd) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    CheckChains(1, 1, 1, dtype);
    CheckChains(37, 16, 4, dtype);
    CheckChains(64, 5, 2, dtype);
    if (!kEmulated) CheckChains(200, 64, 7, dtype);
  }
}

TEST_P(SegmentChainTest, ThreadsChangeNothing) {
  Layer layer(150, 16, 4, 40, DType::kBF16);
  const std::vector<Segment> chain = {{0, 7, kPadSlot, 1}, {7, 33, kPreviousSegment, 0}};
  std::vector<std::byte> expected_slots = layer.Pool(2);
  const std::vector<float> expected = layer.Run(MakeBackend(1).get(), chain, &expected_slots);
  for (int threads = 2; threads <= 4; ++threads) {
    std::vector<std::byte> slots = layer.Pool(2);
    const std::vector<float> out = layer.Run(MakeBackend(threads).get(), chain, &slots);
    ASSERT_TRUE(SameBits(out.data(), expected.data(), static_cast<int64_t>(out.size())));
    ASSERT_EQ(slots, expected_slots);
  }
}

// The f32 op token by token, its state rounded in between on the host, is the bf16 op.
TEST_P(SegmentChainTest, BF16StatesAreRoundedAfterEveryToken) {
  constexpr int32_t kTokens = 70;
  for (const auto& [channels, d_state] : {std::pair<int64_t, int32_t>{40, 16}, {17, 3}}) {
    Layer narrow(channels, d_state, 4, kTokens, DType::kBF16);
    Layer wide(channels, d_state, 4, kTokens, DType::kF32);
    const auto backend = MakeBackend(2);
    std::vector<std::byte> narrow_slots = narrow.Pool(1);
    const std::vector<float> out =
        narrow.Run(backend.get(), {{0, kTokens, kPadSlot, 0}}, &narrow_slots);
    std::vector<std::byte> wide_slots = wide.Pool(1);
    auto* const wide_ssm = reinterpret_cast<float*>(wide_slots.data() + wide.conv_bytes);
    int64_t num_rounded = 0;
    for (int32_t t = 0; t < kTokens; ++t) {
      const std::vector<float> rows =
          wide.Run(backend.get(), {{t, 1, t == 0 ? kPadSlot : 0, 0}}, &wide_slots);
      ASSERT_TRUE(SameBits(rows.data() + t * channels, out.data() + t * channels, channels))
          << "token " << t;
      for (int64_t i = 0; i < wide.ssm_elements; ++i) {
        const float rounded = BF16ToF32(F32ToBF16(wide_ssm[i]));
        num_rounded += rounded != wide_ssm[i];
        wide_ssm[i] = rounded;
      }
    }
    EXPECT_GT(num_rounded, 0);
    const auto* narrow_ssm =
        reinterpret_cast<const uint16_t*>(narrow_slots.data() + narrow.conv_bytes);
    for (int64_t i = 0; i < wide.ssm_elements; ++i) {
      ASSERT_EQ(BF16ToF32(narrow_ssm[i]), wide_ssm[i]) << i;
    }
  }
}

// Ties go to even, overflow to infinity, a NaN stays one: one token whose decay is 1, and a state
// that is to be kept as it is.
TEST_P(SegmentChainTest, BF16RoundingOfEveryKind) {
  Layer layer(16, 1, 1, 1, DType::kBF16);
  const std::vector<float> values = {1.0f,          0x1.01p0f,    0x1.03p0f,
                                     0x1.0101p0f,   -0x1.01p0f,   -0x1.0300002p0f,
                                     0x1.fep127f,   0x1.ffp127f,  -0x1.fffffep127f,
                                     kNan,          0.0f,         0x1.02fffep-100f,
                                     0x1.fffffep0f, 0x1.80ffp60f, 3.0f,
                                     -0x1.7f8p-120f};
  layer.bc[0] = 1.0f;  // b; h = 0 + (d x) b
  layer.weight[0] = 0.0f;
  for (int64_t c = 0; c < 16; ++c) layer.dt_bias[c] = 0.0f;
  // The scan alone: d = softplus(v) with v > 20 is v itself; x carries the value.
  SelectiveScanParams scan{};
  std::vector<float> x(16), dt(16, 32.0f), y(16);
  for (size_t i = 0; i < 16; ++i) x[i] = values[i] / 32.0f;  // exact, but for the NaN
  std::vector<uint16_t> states(16, 0xcdcd);
  const std::vector<Segment> segments = {{0, 1, kPadSlot, 0}};
  scan.x = x.data();
  scan.z = layer.z.data();
  scan.dt = dt.data();
  scan.x_stride = scan.z_stride = scan.dt_stride = scan.y_stride = 16;
  scan.b = layer.bc.data();
  scan.c = layer.bc.data() + 1;
  scan.bc_stride = 2;
  scan.a = layer.a.data();
  scan.dt_bias = scan.d_skip = layer.dt_bias.data();
  scan.states = states.data();
  scan.state_dtype = DType::kBF16;
  scan.slot_stride = 32;
  scan.y = y.data();
  scan.segments = segments.data();
  scan.num_segments = 1;
  scan.channels = 16;
  scan.d_state = 1;
  MakeBackend()->SelectiveScan(scan);
  for (size_t i = 0; i < 16; ++i) {
    if (std::isnan(values[i])) {
      EXPECT_TRUE(std::isnan(BF16ToF32(states[i])));
      continue;
    }
    EXPECT_EQ(states[i], F32ToBF16(values[i])) << values[i];
  }
}

// Slots 5 GiB apart, in address space without memory behind it: the state of slot 2 begins past
// 2^32 bytes and 2^31 elements, that of slot -1 must not be touched.
TEST_P(SegmentChainTest, OffsetsBeyond32Bits) {
  if (OperandsAreStaged()) GTEST_SKIP() << "would copy what lies between the slots";
  constexpr int64_t kDistance = int64_t{5} << 30;
  constexpr size_t kBytes = size_t{3} * kDistance;
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no " << kBytes << " bytes of address space";
  auto* const far = static_cast<std::byte*>(memory);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Layer layer(20, 16, 4, 30, dtype);
    const auto backend = MakeBackend(2);
    const std::vector<Segment> first = {{0, 9, kPadSlot, 2}};
    const std::vector<Segment> second = {{9, 4, 2, 1}, {13, 17, kPreviousSegment, 2}};
    std::vector<std::byte> near = layer.Pool(3);
    layer.Run(backend.get(), first, &near);
    const std::vector<float> expected = layer.Run(backend.get(), second, &near);
    layer.Run(backend.get(), first, far, kDistance);
    const std::vector<float> out = layer.Run(backend.get(), second, far, kDistance);
    EXPECT_TRUE(SameBits(out.data() + 9 * 20, expected.data() + 9 * 20, 21 * 20));
    const int64_t ssm_bytes = layer.ssm_elements * static_cast<int64_t>(DTypeBytes(dtype));
    for (const int64_t slot : {1, 2}) {
      const std::byte* a = far + slot * kDistance;
      const std::byte* b = near.data() + slot * layer.slot_bytes;
      EXPECT_EQ(std::memcmp(a, b, 3 * 20 * sizeof(float)), 0) << slot;
      EXPECT_EQ(std::memcmp(a + layer.conv_bytes, b + layer.conv_bytes, ssm_bytes), 0) << slot;
    }
  }
  munmap(memory, kBytes);
}

}  // namespace
}  // namespace vivarium::kernels
