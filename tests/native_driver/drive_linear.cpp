#include "driver.h"
#include "mlp/mlp.cpp"
#include "linear/linear.cpp"
#include "linear/weights.cpp"

namespace driver {
namespace {

// How a file stores a format: the bytes of a block, its inputs, and the bytes in front of a row.
struct Stored {
    int bytes, inputs, head;
};

Stored stored(int format) {
    return dispatch(
        format, [](auto f) { return Stored{f.BLOCK_BYTES, f.GROUPS * GROUP, f.ROW_BYTES}; },
        [](auto f) { return Stored{f.ITEM, 1, 0}; });
}

bool is_plain(int format) {
    return dispatch(format, [](auto) { return false; }, [](auto) { return true; });
}

// Whether no scale, minimum or plain number of a block is so large that sums of them could end at infinity.
bool is_moderate(int format, const uint8_t* block) {
    auto small = [](F32 x) {
        float lanes[LANES];
        store(lanes, x);
        return std::fabs(lanes[0]) < 0x1p20f;
    };
    return dispatch(
        format,
        [&](auto f) {
            using F = decltype(f);
            uint8_t record[F::RECORD] = {}, codes[F::GROUPS][HALF][GROUP];
            F::block(block, record, 0, codes);
            bool found = true;
            for (int g = 0; g < F::GROUPS; g++) {
                found = found && small(F::minimum(record, g));
                for (int part = 0; part < F::PARTS; part++) found = found && small(F::scale(record, g, part));
            }
            return found;
        },
        [&](auto f) {
            using F = decltype(f);
            uint8_t lanes[LANES * F::ITEM] = {};
            std::memcpy(lanes, block, F::ITEM);
            return small(F::lanes(lanes));
        });
}

// Rows of a matrix as a file stores them: random bytes. They start at any byte, as in a mapped file.
class Source {
  public:
    Source(Random& random, int format, int rows, int d_in)
        : row_bytes(int64_t(d_in / stored(format).inputs) * stored(format).bytes + stored(format).head),
          offset_(random.below(4)), bytes_(offset_ + rows * row_bytes) {
        auto [bytes, inputs, head] = stored(format);
        for (int64_t row = 0; row < rows; row++) {
            uint8_t* to = &bytes_[offset_ + row * row_bytes];
            float scale = random.value();
            std::memcpy(to, &scale, size_t(head));
            for (to += head; to < &bytes_[offset_] + (row + 1) * row_bytes; to += bytes) do
                    for (int i = 0; i < bytes; i++) to[i] = uint8_t(random.word());
                while (!is_moderate(format, to));
        }
    }

    const uint8_t* get() const { return bytes_.get() + offset_; }
    const int64_t row_bytes;

  private:
    int64_t offset_;
    Buffer<uint8_t> bytes_;
};

// A matrix of this format: repacked, multiplied with `rows` rows, and looked up.
void drive(const Runner& runner, Random& random, int format, int rows, int d_in, int d_out) {
    Source source(random, format, d_out, d_in);
    Buffer<uint8_t> tiles(ceil_div(d_out, TILE) * weight_tile_bytes(format, d_in));
    PackArgs pack = {d_in, d_out, format, 0, source.get(), source.row_bytes, tiles.get()};
    runner.run("tile_weight", {OP(tile_weight, pack)}, Step{}, [&] { tiles.poison(); }, [&](Outputs& out) {
        for (int64_t i = 0; i < tiles.count(); i++) out.push_back(float(tiles[i]));
    });

    Step step = {};
    Rows counted = {random.below(3), rows};
    step.num_rows = counted.kind == ALL_ROWS ? rows : 1, step.num_out = counted.kind == OUT_ROWS ? rows : 1;
    int32_t coarse = random.below(2), starts[3] = {0, random.below(rows + 1), rows};  // the second one is a prompt
    step.starts = starts, step.num_seqs = 2, step.num_step_seqs = 1;
    int64_t blocks = is_plain(format) ? 0 : ceil_div(rows, 8) * (d_in / GROUP);
    Matrix x(random, rows, d_in), y(random, rows, d_out);
    x.fill(random, 3.0f);
    Buffer<Block> fixed(blocks);
    Buffer<float> bias(d_out);
    for (int i = 0; i < d_out; i++) bias[i] = random.value();
    QuantizeArgs quantize = {counted, d_in, coarse, x.get(), x.stride(), fixed.get()};
    const float* added = random.below(2) ? bias.get() : nullptr;
    MatmulArgs matmul = {counted, d_in,        d_out,   format,     coarse,  tiles.get(),
                         added,   fixed.get(), x.get(), x.stride(), y.get(), y.stride()};
    Ops ops = {OP(matmul, matmul)};
    if (!is_plain(format)) ops.insert(ops.begin(), OP(quantize, quantize));
    auto reset = [&] { fixed.poison(), y.poison(); };
    runner.run(is_plain(format) ? "matmul" : "quantize matmul", ops, step, reset, [&](Outputs& out) { y.read(out); });

    std::vector<int64_t> ids = {0, d_out - 1};
    for (int i = 2; i < rows; i++) ids.push_back(random.below(d_out));
    ids.resize(size_t(rows));
    Buffer<int64_t> tokens(ids);
    step.num_rows = rows, step.tokens = tokens.get();
    Matrix looked_up(random, rows, d_in);
    EmbedArgs embed = {d_in, format, tiles.get(), 1.5f, 0, looked_up.get(), looked_up.stride()};
    runner.run("embed", {OP(embed, embed)}, step, [&] { looked_up.poison(); },
               [&](Outputs& out) { looked_up.read(out); });
}

// Gate and up of an MLP, into fixed point: the bytes that its next product reads.
void drive_gated(const Runner& runner, Random& random, int format, int rows, int d_in, int d_hidden) {
    Source source(random, format, 2 * d_hidden, d_in);
    Buffer<uint8_t> tiles(2 * d_hidden / TILE * weight_tile_bytes(format, d_in));
    PackArgs pack = {d_in, 2 * d_hidden, format, 0, source.get(), source.row_bytes, tiles.get()};
    Step step = {};
    int32_t coarse = random.below(2), starts[3] = {0, random.below(rows + 1), rows};
    step.num_rows = rows, step.starts = starts, step.num_seqs = 2, step.num_step_seqs = 1;
    Matrix x(random, rows, d_in);
    x.fill(random, 3.0f);
    int groups = d_hidden / GROUP;
    Buffer<Block> fixed(ceil_div(rows, 8) * (d_in / GROUP)), hidden(ceil_div(rows, 8) * groups);
    Buffer<float> bias(2 * d_hidden);
    for (int i = 0; i < 2 * d_hidden; i++) bias[i] = random.value();
    QuantizeArgs quantize = {{ALL_ROWS, 0}, d_in, coarse, x.get(), x.stride(), fixed.get()};
    GatedArgs gated = {{ALL_ROWS, 0}, d_in,        d_hidden,
                       format,        coarse,      random.below(2),
                       0,             tiles.get(), random.below(2) ? bias.get() : nullptr,
                       fixed.get(),   hidden.get()};
    Ops ops = {OP(tile_weight, pack), OP(quantize, quantize), OP(gated, gated)};
    runner.run("quantize gated", ops, step, [&] { fixed.poison(), hidden.poison(); }, [&](Outputs& out) {
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < groups; g++) {
                const Block& block = hidden[r / 8 * groups + g];
                bool is_coarse = coarse && r >= starts[1];
                for (int i = 0; i < GROUP; i++) out.push_back(float(integer(block.integers[r % 8], i, is_coarse)));
                out.push_back(block.scales[r % 8]), out.push_back(block.sums[r % 8]);
                for (int half = 0; half < 2; half++) out.push_back(float(block.isums[r % 8][half]));
            }
    });
}

}  // namespace

void drive_linear(const Runner& runner) {
    Random random(1);
    for (int format = 0; format < NUM_FORMATS; format++) {
        int inputs = stored(format).inputs;
        for (int rows : {1, 2, 3, 5, 8, 17, 65}) {
            int d_in = inputs == 256  ? random.one_of({256, 512, 768})
                       : inputs == 32 ? random.one_of({32, 64, 96, 288})  // more groups than are read at a time
                                      : random.one_of({1, 2, 33, 100});
            drive(runner, random, format, rows, d_in, random.one_of({1, 15, 16, 17, 32, 33, 70}));
        }
        drive(runner, random, format, 3, inputs == 1 ? 130 : 256, 900);  // several chunks
        if (inputs == 1) continue;
        for (int rows : {1, 3, 8, 33, 70})
            drive_gated(runner, random, format, rows, inputs == 256 ? 512 : 288, random.one_of({32, 96, 320}));
    }
}

}  // namespace driver
