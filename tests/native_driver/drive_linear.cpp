#include "driver.h"
#include "mlp/mlp.cpp"
#include "linear/linear.cpp"
#include "linear/weights.cpp"

namespace driver {
namespace {

// Bytes of one block of a file, its inputs, where its fp16 numbers are, and the bytes of the fp32 numbers of a row.
struct Stored {
    int bytes, inputs;
    std::vector<int> halves;
    int head = 0;
};

const Stored FILES[] = {{18, 32, {0}},     {20, 32, {0, 2}},  {22, 32, {0}},    {24, 32, {0, 2}},
                        {34, 32, {0}},     {144, 256, {0, 2}}, {176, 256, {0, 2}}, {210, 256, {208}},
                        {32, 32, {}, 4},   {4, 1, {}},         {2, 1, {}},         {2, 1, {}}};

uint16_t small_half(Random& random) {  // subnormal ones among them
    return uint16_t((random.word() & 0x83FF) | (random.below(4) << 11));
}

// Rows of a matrix as a file stores them. They start at any byte, as in a mapped file.
class Source {
  public:
    Source(Random& random, int format, int rows, int d_in)
        : row_bytes(int64_t(d_in / FILES[format].inputs) * FILES[format].bytes + FILES[format].head),
          offset_(random.below(4)), bytes_(offset_ + rows * row_bytes) {
        const Stored& stored = FILES[format];
        for (int64_t i = 0; i < bytes_.count(); i++) bytes_[i] = uint8_t(random.word());
        for (int64_t row = 0; stored.head && row < rows; row++) {
            float scale = random.value();
            std::memcpy(&bytes_[offset_ + row * row_bytes], &scale, 4);
        }
        for (int64_t at = offset_; at < bytes_.count() && !stored.head; at += stored.bytes) {
            float x = random.value();
            uint16_t half = small_half(random);
            uint32_t bits;
            std::memcpy(&bits, &x, 4);
            for (int place : stored.halves) half = small_half(random), std::memcpy(&bytes_[at + place], &half, 2);
            if (format == f32) std::memcpy(&bytes_[at], &x, 4);
            if (format == f16) std::memcpy(&bytes_[at], &half, 2);
            if (format == bf16) half = uint16_t(bits >> 16), std::memcpy(&bytes_[at], &half, 2);
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
    bool is_plain = format >= f32;
    int64_t blocks = is_plain ? 0 : ceil_div(rows, 8) * (d_in / GROUP);
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
    if (!is_plain) ops.insert(ops.begin(), OP(quantize, quantize));
    auto reset = [&] { fixed.poison(), y.poison(); };
    runner.run(is_plain ? "matmul" : "quantize matmul", ops, step, reset, [&](Outputs& out) { y.read(out); });

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
                for (int i = 0; i < (is_coarse ? 32 : 64); i++) out.push_back(block.planes[r % 8][i]);
                out.push_back(block.scales[r % 8]), out.push_back(block.sums[r % 8]);
                for (int half = 0; half < 2; half++) out.push_back(float(block.isums[r % 8][half]));
            }
    });
}

}  // namespace

void drive_linear(const Runner& runner) {
    Random random(1);
    for (int format = 0; format <= bf16; format++) {
        int inputs = FILES[format].inputs;
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
