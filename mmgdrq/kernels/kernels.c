/* The functions of codes.py and statistics.py for float32 on a CPU, in one pass over memory each.
 *
 * The arithmetic is that of the torch path, operation by operation: an IEEE division, a rounding half to even and a
 * multiplication, so the results are equal bit for bit; only sums are added up in another order. Compile without
 * -ffast-math and with -ffp-contract=off. Loops are distributed over torch's own OpenMP threads.
 */

#include <float.h>
#include <math.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#if __GNUC__ >= 12 /* v4 is AVX-512 with the instructions for bytes, which makes codes three times as fast */
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "avx2", "default"))) static
#else
#define KERNEL __attribute__((target_clones("avx512f", "avx2", "default"))) static
#endif
#else
#define KERNEL static
#endif

#define BLOCK 8192
#define GRAIN 32768                  /* elements that are not worth a second thread, as in torch */
#define INSIDE 128
#define FAR 1e6f                     /* in units of a threshold: what lies beyond does not overflow its cube */
#define TINY 1e-30f
#define LANES 16                     /* words that a checksum adds at once */
#define FACTOR 0x9e3779b97f4a7c15u   /* odd, its bits mixed */

typedef struct {
    float step, offset, lowest, highest; /* values are (code + offset) * step; limits of the codes */
    float low, high;                     /* limits of the values that are not clipped */
    int flagged;                         /* codes carry INSIDE */
} grid;

KERNEL void quantize_block(const float *restrict x, float *restrict values, int64_t n, grid g) {
    for (int64_t i = 0; i < n; i++) {
        float code = rintf(x[i] / g.step - g.offset);
        code = g.lowest > code ? g.lowest : code;
        code = g.highest < code ? g.highest : code;
        values[i] = (code + g.offset) * g.step;
    }
}

KERNEL void encode_block(const float *restrict x, float *restrict values, uint8_t *restrict codes,
                         uint8_t *restrict inside, int64_t n, grid g) {
    int32_t lowest = (int32_t)g.lowest, flag = g.flagged ? INSIDE : 0;
    for (int64_t i = 0; i < n; i++) {
        float code = rintf(x[i] / g.step);
        code = g.lowest > code ? g.lowest : code;
        code = g.highest < code ? g.highest : code;
        values[i] = code * g.step;
        int32_t passes = (x[i] >= g.low) & (x[i] <= g.high);
        codes[i] = (uint8_t)(((int32_t)code - lowest) | (passes * flag));
    }
    if (inside)
        for (int64_t i = 0; i < n; i++) inside[i] = (x[i] >= g.low) & (x[i] <= g.high);
}

/* Gradients of LSQ: result = grad * inside, and the sum of grad times the slope of the values over the step. */
KERNEL void learned_block(const float *restrict x, const float *restrict grad, float *restrict result, int64_t n, grid g,
                          double *sum) {
    float total = 0, last = g.highest + 2 * g.offset; /* midrise: half a step beyond the outer levels */
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) {
        float scaled = x[i] / g.step, level = rintf(scaled - g.offset);
        level = g.lowest > level ? g.lowest : level;
        level = (g.highest < level ? g.highest : level) + g.offset;
        int32_t inside = (scaled >= g.lowest) & (scaled <= last);
        total += grad[i] * (inside ? level - scaled : level);
        result[i] = grad[i] * (float)inside;
    }
    *sum += total;
}

KERNEL void sum_block(const float *restrict x, int64_t n, double *sum, double *count) {
    float total = 0;
    int32_t nonzero = 0;
#pragma omp simd reduction(+ : total, nonzero)
    for (int64_t i = 0; i < n; i++) {
        total += fabsf(x[i]);
        nonzero += x[i] != 0;
    }
    *sum += total;
    *count += nonzero;
}

/* Sums of |x / unit|^3 and (x / unit)^2; NaN and Inf stay what they are. */
KERNEL void power_block(const float *restrict x, int64_t n, float scale, double *cubes, double *squares) {
    float cubed = 0, squared = 0;
#pragma omp simd reduction(+ : cubed, squared)
    for (int64_t i = 0; i < n; i++) {
        float size = fabsf(x[i] * scale);
        size = (size > FAR) & (size <= FLT_MAX) ? FAR : size;
        float square = size * size;
        squared += square;
        cubed += square * size;
    }
    *cubes += cubed;
    *squares += squared;
}

KERNEL void decode_block(const uint8_t *restrict codes, float *restrict values, int64_t n, float step, int32_t lowest,
                         int32_t bits) {
    for (int64_t i = 0; i < n; i++) values[i] = (float)((int32_t)(codes[i] & bits) + lowest) * step;
}

KERNEL void mask_block(float *restrict grad, const uint8_t *restrict codes, int64_t n, int32_t shift) {
    for (int64_t i = 0; i < n; i++) grad[i] *= (float)((int32_t)codes[i] >> shift);
}

/* Eight bytes of 0 or 1 <-> eight bits, element i at bit i (little endian). */
KERNEL void pack_block(const uint64_t *restrict bytes, uint8_t *restrict bits, int64_t n) {
    for (int64_t i = 0; i < n; i++) bits[i] = (uint8_t)(bytes[i] * 0x0102040810204080u >> 56);
}

KERNEL void unpack_block(const uint8_t *restrict bits, uint64_t *restrict bytes, int64_t n) {
    for (int64_t i = 0; i < n; i++) bytes[i] = bits[i] * 0x0101010101010101u & 0x8040201008040201u;
}

KERNEL void relu_block(const float *x, float *result, uint8_t *restrict positive, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        positive[i] = !(x[i] <= 0); /* as torch, also for NaN */
        result[i] = 0 > x[i] ? 0 : x[i];
    }
}

KERNEL void select_block(const int32_t *restrict grad, const uint8_t *restrict positive, int32_t *restrict result,
                         int64_t n) {
    for (int64_t i = 0; i < n; i++) result[i] = grad[i] & -(int32_t)(positive[i] != 0);
}

KERNEL void clip_block(float *x, int64_t n, float bound) {
    for (int64_t i = 0; i < n; i++) {
        float value = -bound > x[i] ? -bound : x[i];
        x[i] = bound < value ? bound : value;
    }
}

typedef uint64_t __attribute__((aligned(1), may_alias)) word;

/* Sums, and sums of the sums so far, of every LANES-th word: they notice words that change places. */
KERNEL void checksum_block(const word *x, int64_t n, uint64_t *restrict sums, uint64_t *restrict places) {
    for (int64_t i = 0; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            sums[lane] += x[i + lane];
            places[lane] += sums[lane];
        }
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Threads for so many elements: all or one, as a team of another size would make OpenMP end threads and start them. */
static int team_of(int64_t elements, int threads) { return elements < GRAIN ? 1 : threads; }

/* sum|x|; count receives the number of nonzero elements. */
static float sum_row(const float *x, int64_t n, float *count) {
    double sum = 0, nonzero = 0;
    for (int64_t i = 0; i < n; i += BLOCK) sum_block(x + i, least(BLOCK, n - i), &sum, &nonzero);
    *count = (float)nonzero;
    return (float)sum;
}

/* mean|x| of the nonzero elements, 0 where there is none. */
static float mean_of_row(const float *x, int64_t n) {
    float count, sum = sum_row(x, n, &count);
    return sum / (count < 1 ? 1 : count);
}

static float step_of(float range, float levels, float floor) {
    float step = range / levels;
    return step < floor ? floor : step;
}

/* Inverse of a unit that is rounded down to a power of two, so that scaling by it rounds nothing. */
static float scale_of(float unit) {
    union { float value; uint32_t bits; } power = {unit < TINY ? TINY : unit};
    power.bits &= 0x7f800000u;
    return 1 / power.value;
}

/* One block of a statistic: sum|x| and the number of nonzero elements, or sum|x / unit|^3 and sum(x / unit)^2. */
static void add_block(const float *x, int64_t n, float scale, int powers, double *total, double *weight) {
    if (powers)
        power_block(x, n, scale, total, weight);
    else
        sum_block(x, n, total, weight);
}

static void store(double *statistic, double total, double weight, float scale, int powers) {
    double unit = powers ? 1 / (double)scale : 1;
    statistic[0] = total * (powers ? unit * unit * unit : 1);
    statistic[1] = weight * unit * unit;
}

/* codes, inside, statistic and step may be NULL. */
void mmgdrq_encode(const float *x, float *values, uint8_t *codes, uint8_t *inside, double *statistic, float *step,
                   int64_t n, float threshold, float levels, float floor, float lowest, float highest, int flagged,
                   int powers, int threads) {
    grid g = {step_of(threshold, levels, floor), 0, lowest, highest, lowest < 0 ? -threshold : 0, threshold, flagged};
    double total = 0, weight = 0;
    float scale = scale_of(threshold);
#pragma omp parallel for num_threads(team_of(n, threads)) reduction(+ : total, weight) schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t m = least(BLOCK, n - i);
        if (statistic) add_block(x + i, m, scale, powers, &total, &weight);
        if (codes)
            encode_block(x + i, values + i, codes + i, inside ? inside + i : 0, m, g);
        else
            quantize_block(x + i, values + i, m, g);
    }
    if (step) *step = g.step;
    if (statistic) store(statistic, total, weight, scale, powers);
}

void mmgdrq_statistic(const float *x, double *statistic, int64_t n, float unit, int powers, int threads) {
    double total = 0, weight = 0;
    float scale = scale_of(unit);
#pragma omp parallel for num_threads(team_of(n, threads)) reduction(+ : total, weight) schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK) add_block(x + i, least(BLOCK, n - i), scale, powers, &total, &weight);
    store(statistic, total, weight, scale, powers);
}

/* A number that changes when any of the bytes changes, but for one chance in 2^64 or so. */
void mmgdrq_checksum(const uint8_t *bytes, uint64_t *result, int64_t n, int threads) {
    uint64_t sums[LANES] = {0}, places[LANES] = {0}, total = (uint64_t)n;
    int64_t words = n / 8 / LANES * LANES;
    (void)threads; /* a weight is small */
    checksum_block((const word *)bytes, words, sums, places);
    for (int lane = 0; lane < LANES; lane++) total = (total * FACTOR + sums[lane]) * FACTOR + places[lane];
    for (int64_t i = words * 8; i < n; i++) total = total * FACTOR + bytes[i];
    *result = total;
}

/* One step a row. */
void mmgdrq_encode_rows(const float *x, const float *steps, float *values, int64_t rows, int64_t columns, float lowest,
                        float highest, float offset, int threads) {
    int64_t blocks = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(team_of(rows * columns, threads)) schedule(static)
    for (int64_t b = 0; b < rows * blocks; b++) {
        int64_t r = b / blocks, start = b % blocks * BLOCK, i = r * columns + start;
        grid g = {steps[r], offset, lowest, highest, 0, 0, 0};
        quantize_block(x + i, values + i, least(BLOCK, columns - start), g);
    }
}

/* The range of every row is k * mean|row| of its nonzero elements; steps receives max(range / levels, floor). */
void mmgdrq_encode_mean_rows(const float *x, float *steps, float *values, int64_t rows, int64_t columns, float lowest,
                             float highest, float offset, float k, float levels, float floor, int threads) {
#pragma omp parallel for num_threads(team_of(rows * columns, threads)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * columns;
        steps[r] = step_of(mean_of_row(row, columns) * k, levels, floor);
        grid g = {steps[r], offset, lowest, highest, 0, 0, 0};
        quantize_block(row, values + r * columns, columns, g);
    }
}

/* One step a row, or one for all; sums receives the sum of every step. A region inside a region, also one of a single
 * thread, would start and end threads of its own in every call. */
void mmgdrq_learned_backward(const float *x, const float *grad, const float *steps, float *result, float *sums,
                             int64_t rows, int64_t columns, float lowest, float highest, float offset, int threads) {
    int team = team_of(rows * columns, threads);
    if (rows == 1) {
        grid g = {steps[0], offset, lowest, highest, 0, 0, 0};
        double sum = 0;
#pragma omp parallel for num_threads(team) reduction(+ : sum) schedule(static)
        for (int64_t i = 0; i < columns; i += BLOCK)
            learned_block(x + i, grad + i, result + i, least(BLOCK, columns - i), g, &sum);
        sums[0] = (float)sum;
        return;
    }
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        grid g = {steps[r], offset, lowest, highest, 0, 0, 0};
        double sum = 0;
        for (int64_t i = r * columns; i < (r + 1) * columns; i += BLOCK)
            learned_block(x + i, grad + i, result + i, least(BLOCK, (r + 1) * columns - i), g, &sum);
        sums[r] = (float)sum;
    }
}

/* result receives sum|row| of every row, then the number of its nonzero elements. */
void mmgdrq_sum_and_count_rows(const float *x, float *result, int64_t rows, int64_t columns, int threads) {
#pragma omp parallel for num_threads(team_of(rows * columns, threads)) schedule(static)
    for (int64_t r = 0; r < rows; r++) result[r] = sum_row(x + r * columns, columns, result + rows + r);
}

void mmgdrq_decode(const uint8_t *codes, const float *steps, float *values, int64_t rows, int64_t columns,
                   int lowest, int bits, int threads) {
    int64_t blocks = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(team_of(rows * columns, threads)) schedule(static)
    for (int64_t b = 0; b < rows * blocks; b++) {
        int64_t r = b / blocks, start = b % blocks * BLOCK, i = r * columns + start;
        decode_block(codes + i, values + i, least(BLOCK, columns - start), steps[r], lowest, bits);
    }
}

/* grad *= codes >> shift: shift 7 reads the flag of a code, shift 0 a byte of 0 or 1. */
void mmgdrq_mask(float *grad, const uint8_t *codes, int64_t n, int shift, int threads) {
#pragma omp parallel for num_threads(team_of(n, threads)) schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK) mask_block(grad + i, codes + i, least(BLOCK, n - i), shift);
}

/* result = max(x, 0), which may be x itself; positive receives x > 0, one bit an element. */
void mmgdrq_relu(const float *x, float *result, uint8_t *positive, int64_t n, int threads) {
#pragma omp parallel for num_threads(team_of(n, threads)) schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK) {
        uint64_t bytes[BLOCK / 8];
        int64_t m = least(BLOCK, n - i);
        bytes[(m - 1) / 8] = 0;
        relu_block(x + i, result + i, (uint8_t *)bytes, m);
        pack_block(bytes, positive + i / 8, (m + 7) / 8);
    }
}

void mmgdrq_relu_backward(const int32_t *grad, const uint8_t *positive, int32_t *result, int64_t n, int threads) {
#pragma omp parallel for num_threads(team_of(n, threads)) schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK) {
        uint64_t bytes[BLOCK / 8];
        int64_t m = least(BLOCK, n - i);
        unpack_block(positive + i / 8, bytes, (m + 7) / 8);
        select_block(grad + i, (const uint8_t *)bytes, result + i, m);
    }
}

/* Clip every row to [-bound, bound] in place; bounds may be NULL: the bound of a row is then k * mean|row| of its
 * nonzero elements. */
void mmgdrq_clip_rows(float *x, const float *bounds, int64_t rows, int64_t columns, float k, int threads) {
#pragma omp parallel for num_threads(team_of(rows * columns, threads)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *row = x + r * columns;
        clip_block(row, columns, bounds ? bounds[r] : mean_of_row(row, columns) * k);
    }
}
