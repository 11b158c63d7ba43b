// The pieces of a Mamba-1 layer that are not matrix products, forward and backward, fused for CPU
// training. Everything is float32 and single-threaded: train.py runs one process per core.
//
// Shapes: activations are time-major, row r = t * B + b for step t of sequence b, so (L*B, width).
// L steps, B sequences, D channels (d_inner), N states per channel. Loops run over kLanes channels
// at once, so that the N states of kLanes channels stay in registers.
//
// Build: gcc -O3 -march=native -ffast-math -fPIC -shared fused_layer.c -o libfused_layer.so -lm
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
  kStates = 16,  // N
  kLanes = 16,   // channels in one vector
  kTaps = 4,     // width of the convolution
  kChunk = 32,   // steps between two kept states; the backward pass recomputes inside a chunk
};

typedef float vec __attribute__((vector_size(64)));
typedef int ivec __attribute__((vector_size(64)));
typedef float unaligned_vec __attribute__((vector_size(64), aligned(4), may_alias));

static inline vec Load(const float* p) { return *(const unaligned_vec*)p; }
static inline void Store(float* p, vec x) { *(unaligned_vec*)p = x; }
static inline void AddTo(float* p, vec x) { Store(p, Load(p) + x); }
static inline vec Splat(float x) { return (vec){0} + x; }
static inline vec Select(ivec mask, vec a, vec b) {
  return (vec)(((ivec)a & mask) | ((ivec)b & ~mask));
}

// exp(x) as 2^(x log2 e): exponent by bits, fraction in [-0.5, 0.5] by a polynomial of degree 6;
// relative error about 2e-7.
static inline vec Exp(vec x) {
  vec t = x * 1.44269504f;
  t = Select(t < Splat(-125.f), Splat(-125.f), t);
  t = Select(t > Splat(126.f), Splat(126.f), t);
  ivec biased_exponent = __builtin_convertvector(t + 127.5f, ivec);
  vec f = t - (__builtin_convertvector(biased_exponent, vec) - 127.f);
  vec p = f * .000154035f + .00133335581f;
  p = p * f + .00961812911f;
  p = p * f + .0555041087f;
  p = p * f + .240226507f;
  p = p * f + .693147181f;
  p = p * f + 1.f;
  return p * (vec)(biased_exponent << 23);
}
static inline vec Sigmoid(vec x) { return 1.f / (1.f + Exp(-x)); }
static inline float Sum(vec x) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += x[lane];
  return sum;
}

// ---- RMSNorm: out = x * rstd * weight. x, out: (rows, D); rstd: (rows), kept for the backward.
void rms_norm_forward(int rows, int D, const float* x, const float* weight, float eps, float* out,
                      float* rstd) {
  for (int r = 0; r < rows; r++) {
    const float* x_row = x + (size_t)r * D;
    float* out_row = out + (size_t)r * D;
    float squares = 0;
    for (int d = 0; d < D; d++) squares += x_row[d] * x_row[d];
    float scale = 1.f / sqrtf(squares / D + eps);
    rstd[r] = scale;
    for (int d = 0; d < D; d++) out_row[d] = x_row[d] * scale * weight[d];
  }
}

// Adds into grad_x (the residual stream's gradient) and into grad_weight.
void rms_norm_backward(int rows, int D, const float* x, const float* weight, const float* rstd,
                       const float* grad_out, float* grad_x, float* grad_weight) {
  for (int r = 0; r < rows; r++) {
    const float* x_row = x + (size_t)r * D;
    const float* g_row = grad_out + (size_t)r * D;
    float* gx_row = grad_x + (size_t)r * D;
    float scale = rstd[r];
    float dot = 0;
    for (int d = 0; d < D; d++) {
      dot += g_row[d] * weight[d] * x_row[d];
      grad_weight[d] += g_row[d] * x_row[d] * scale;
    }
    float k = dot * scale * scale * scale / D;
    for (int d = 0; d < D; d++) gx_row[d] += g_row[d] * weight[d] * scale - x_row[d] * k;
  }
}

// ---- Causal depthwise convolution, then SiLU. xz: (L*B, 2D), of which x is the first half of each
// row; weight: (kTaps, D); bias: (D); u: (L*B, D).

// The convolution before SiLU at step t; x points at channel d of row (t, b).
static inline vec ConvAt(int t, int B, int D, const float* x, const float* weight,
                         const float* bias, int d) {
  vec sum = Load(bias + d);
  for (int tap = 0; tap < kTaps; tap++) {
    int back = kTaps - 1 - tap;
    if (t >= back) {
      sum += Load(weight + (size_t)tap * D + d) * Load(x - (ptrdiff_t)back * B * 2 * D);
    }
  }
  return sum;
}

void conv_silu_forward(int L, int B, int D, const float* xz, const float* weight, const float* bias,
                       float* u) {
  for (int t = 0; t < L; t++) {
    for (int b = 0; b < B; b++) {
      size_t r = (size_t)t * B + b;
      for (int d = 0; d < D; d += kLanes) {
        vec a = ConvAt(t, B, D, xz + r * 2 * D + d, weight, bias, d);
        Store(u + r * D + d, a * Sigmoid(a));
      }
    }
  }
}

// grad_u is overwritten (it becomes the gradient before SiLU); the x half of grad_xz is written;
// grad_weight and grad_bias are added to.
void conv_silu_backward(int L, int B, int D, const float* xz, const float* weight,
                        const float* bias, float* grad_u, float* grad_xz, float* grad_weight,
                        float* grad_bias) {
  for (int t = 0; t < L; t++) {
    for (int b = 0; b < B; b++) {
      size_t r = (size_t)t * B + b;
      for (int d = 0; d < D; d += kLanes) {
        const float* x = xz + r * 2 * D + d;
        vec a = ConvAt(t, B, D, x, weight, bias, d);
        vec s = Sigmoid(a);
        vec g = Load(grad_u + r * D + d) * s * (1.f + a * (1.f - s));
        Store(grad_u + r * D + d, g);
        AddTo(grad_bias + d, g);
        for (int tap = 0; tap < kTaps; tap++) {
          int back = kTaps - 1 - tap;
          if (t >= back) {
            AddTo(grad_weight + (size_t)tap * D + d, g * Load(x - (ptrdiff_t)back * B * 2 * D));
          }
        }
      }
    }
  }
  for (int t = 0; t < L; t++) {
    for (int b = 0; b < B; b++) {
      size_t r = (size_t)t * B + b;
      for (int d = 0; d < D; d += kLanes) {
        vec sum = {0};
        for (int tap = 0; tap < kTaps; tap++) {
          int ahead = kTaps - 1 - tap;
          if (t + ahead < L) {
            sum +=
                Load(weight + (size_t)tap * D + d) * Load(grad_u + (r + (size_t)ahead * B) * D + d);
          }
        }
        Store(grad_xz + r * 2 * D + d, sum);
      }
    }
  }
}

// ---- delta = softplus(raw + bias), in place. x: (rows, D); linear above 20, as in the reference.
void softplus_forward(int rows, int D, float* x, const float* bias) {
  for (int r = 0; r < rows; r++) {
    float* row = x + (size_t)r * D;
    for (int d = 0; d < D; d++) {
      float v = row[d] + bias[d];
      float soft = logf(1.f + expf(v < 20.f ? v : 20.f));
      row[d] = v < 20.f ? soft : v;
    }
  }
}

// ---- Selective scan with skip and gate (Gu and Dao 2023, equation 2 with A diagonal, B
// simplified):
//   h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,   y_t = (C_t . h_t + D u_t) * silu(z_t)
// u, delta, y: (L*B, D); BC points at each row's N values of B, then N of C, rows bc_stride floats
// apart; A: (N, D), negative; skip: (D); z is the second half of each row of xz (L*B, 2D);
// kept: (ceil(L/kChunk), B, N, D), the states at every chunk's start.
void scan_forward(int L, int B, int D, const float* u, const float* delta, const float* BC,
                  int bc_stride, const float* A, const float* skip, const float* xz, float* y,
                  float* kept) {
  for (int b = 0; b < B; b++) {
    for (int d = 0; d < D; d += kLanes) {
      vec h[kStates], a[kStates];
      for (int n = 0; n < kStates; n++) {
        h[n] = Splat(0);
        a[n] = Load(A + (size_t)n * D + d);
      }
      vec skip_d = Load(skip + d);
      for (int t = 0; t < L; t++) {
        size_t r = (size_t)t * B + b;
        const float* bc = BC + r * bc_stride;
        if (t % kChunk == 0) {
          float* chunk_state = kept + ((size_t)(t / kChunk) * B + b) * kStates * D;
          for (int n = 0; n < kStates; n++) Store(chunk_state + (size_t)n * D + d, h[n]);
        }
        vec dt = Load(delta + r * D + d);
        vec x = Load(u + r * D + d);
        vec z = Load(xz + r * 2 * D + D + d);
        vec dx = dt * x;
        vec sum = skip_d * x;
#pragma GCC unroll 16
        for (int n = 0; n < kStates; n++) {
          h[n] = Exp(dt * a[n]) * h[n] + dx * bc[n];
          sum += h[n] * bc[kStates + n];
        }
        Store(y + r * D + d, sum * z * Sigmoid(z));
      }
    }
  }
}

// Workspace of the backward scan for one sequence.
typedef struct {
  vec* h;         // (kChunk + 1, N) states of one vector of channels, recomputed
  vec* decay;     // (kChunk, N) exp(delta A)
  vec* grad_B;    // (kChunk, N) summed over vectors of channels
  vec* grad_C;    // (kChunk, N)
  float* grad_h;  // (N, D) gradient of the state carried backwards between chunks
} ScanWorkspace;

static ScanWorkspace NewScanWorkspace(int D) {
  ScanWorkspace w;
  w.h = aligned_alloc(64, sizeof(vec) * (kChunk + 1) * kStates);
  w.decay = aligned_alloc(64, sizeof(vec) * kChunk * kStates);
  w.grad_B = aligned_alloc(64, sizeof(vec) * kChunk * kStates);
  w.grad_C = aligned_alloc(64, sizeof(vec) * kChunk * kStates);
  w.grad_h = aligned_alloc(64, sizeof(float) * kStates * D);
  return w;
}

static void FreeScanWorkspace(ScanWorkspace* w) {
  free(w->h);
  free(w->decay);
  free(w->grad_B);
  free(w->grad_C);
  free(w->grad_h);
}

// Gradients of the inputs are written: grad_u, grad_delta (already through softplus, so with
// respect to raw + bias), grad_BC (rows bc_stride apart), the z half of grad_xz. Gradients of the
// parameters are added to: grad_A (N, D), grad_skip (D), grad_delta_bias (D).
void scan_backward(int L, int B, int D, const float* u, const float* delta, const float* BC,
                   int bc_stride, const float* A, const float* skip, const float* xz,
                   const float* kept, const float* grad_y, float* grad_u, float* grad_delta,
                   float* grad_BC, float* grad_xz, float* grad_A, float* grad_skip,
                   float* grad_delta_bias) {
  ScanWorkspace w = NewScanWorkspace(D);
  for (int b = 0; b < B; b++) {
    memset(w.grad_h, 0, sizeof(float) * kStates * D);
    for (int chunk = (L - 1) / kChunk; chunk >= 0; chunk--) {
      int start = chunk * kChunk;
      int steps = L - start < kChunk ? L - start : kChunk;
      memset(w.grad_B, 0, sizeof(vec) * kChunk * kStates);
      memset(w.grad_C, 0, sizeof(vec) * kChunk * kStates);
      for (int d = 0; d < D; d += kLanes) {
        vec a[kStates], grad_h[kStates], grad_a[kStates], ungated[kChunk];
        vec skip_d = Load(skip + d), grad_skip_d = {0}, grad_bias_d = {0};
        for (int n = 0; n < kStates; n++) {
          a[n] = Load(A + (size_t)n * D + d);
          w.h[n] = Load(kept + (((size_t)chunk * B + b) * kStates + n) * D + d);
          grad_h[n] = Load(w.grad_h + (size_t)n * D + d);
          grad_a[n] = Splat(0);
        }
        for (int k = 0; k < steps; k++) {  // forward again
          size_t r = (size_t)(start + k) * B + b;
          const float* bc = BC + r * bc_stride;
          vec dt = Load(delta + r * D + d), x = Load(u + r * D + d);
          vec dx = dt * x, sum = skip_d * x;
#pragma GCC unroll 16
          for (int n = 0; n < kStates; n++) {
            vec decay = Exp(dt * a[n]);
            vec h = decay * w.h[k * kStates + n] + dx * bc[n];
            w.decay[k * kStates + n] = decay;
            w.h[(k + 1) * kStates + n] = h;
            sum += h * bc[kStates + n];
          }
          ungated[k] = sum;
        }
        for (int k = steps - 1; k >= 0; k--) {
          size_t r = (size_t)(start + k) * B + b;
          const float* bc = BC + r * bc_stride;
          vec dt = Load(delta + r * D + d), x = Load(u + r * D + d);
          vec z = Load(xz + r * 2 * D + D + d), g = Load(grad_y + r * D + d);
          vec s = Sigmoid(z), dx = dt * x, grad_dt = {0}, grad_dx = {0};
          Store(grad_xz + r * 2 * D + D + d, g * ungated[k] * s * (1.f + z * (1.f - s)));
          g *= z * s;
          grad_skip_d += g * x;
#pragma GCC unroll 4
          for (int n = 0; n < kStates; n++) {
            vec gh = grad_h[n] + g * bc[kStates + n];
            vec decay = w.decay[k * kStates + n];
            vec grad_exponent = gh * w.h[k * kStates + n] * decay;
            w.grad_C[k * kStates + n] += g * w.h[(k + 1) * kStates + n];
            w.grad_B[k * kStates + n] += gh * dx;
            grad_dt += grad_exponent * a[n];
            grad_a[n] += grad_exponent * dt;
            grad_dx += gh * bc[n];
            grad_h[n] = gh * decay;
          }
          // d softplus(v) / dv = sigmoid(v) = 1 - exp(-softplus(v)).
          vec grad_raw = (grad_dt + grad_dx * x) * (1.f - Exp(-dt));
          grad_bias_d += grad_raw;
          Store(grad_delta + r * D + d, grad_raw);
          Store(grad_u + r * D + d, grad_dx * dt + g * skip_d);
        }
        for (int n = 0; n < kStates; n++) {
          Store(w.grad_h + (size_t)n * D + d, grad_h[n]);
          AddTo(grad_A + (size_t)n * D + d, grad_a[n]);
        }
        AddTo(grad_skip + d, grad_skip_d);
        AddTo(grad_delta_bias + d, grad_bias_d);
      }
      for (int k = 0; k < steps; k++) {
        float* out = grad_BC + ((size_t)(start + k) * B + b) * bc_stride;
        for (int n = 0; n < kStates; n++) {
          out[n] = Sum(w.grad_B[k * kStates + n]);
          out[kStates + n] = Sum(w.grad_C[k * kStates + n]);
        }
      }
    }
  }
  FreeScanWorkspace(&w);
}

// ---- Weighted cross-entropy. logits: (rows, vocab), vocab a multiple of kLanes; become the
// gradient of scale * sum(weight * loss). targets: (rows); loss: (rows), in nats, unweighted.
void cross_entropy(int rows, int vocab, float* logits, const int64_t* targets, const float* weights,
                   float scale, float* loss) {
  for (int r = 0; r < rows; r++) {
    float* row = logits + (size_t)r * vocab;
    float highest = row[0], sum = 0;
    for (int v = 1; v < vocab; v++) highest = row[v] > highest ? row[v] : highest;
    loss[r] = highest - row[targets[r]];
    for (int v = 0; v < vocab; v += kLanes) {
      vec e = Exp(Load(row + v) - highest);
      Store(row + v, e);
      sum += Sum(e);
    }
    loss[r] += logf(sum);
    float k = weights[r] * scale / sum;
    for (int v = 0; v < vocab; v++) row[v] *= k;
    row[targets[r]] -= weights[r] * scale;
  }
}
