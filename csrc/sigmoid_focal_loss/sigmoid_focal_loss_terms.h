// The formulas of sigmoid_focal_loss.h for one logit, for the CPU and the GPU. The CPU runs them in
// loops that compilers vectorise, so they have no branches and call no library function in float32.
// The GPU, where every step costs a cycle of a thread, takes its own exp and reciprocal.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../kernel.h"

namespace fcos_core {

// condition ? yes : no, by bits. For the ternary GCC makes a branch, into which it moves what one
// side alone needs; as that might trap, the loop around it then is not vectorised.
FCOS_HOST_DEVICE FCOS_INLINE float choose(bool condition, float yes, float no) {
#if defined(__CUDA_ARCH__)
  return condition ? yes : no;
#else
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  uint32_t yes_bits, no_bits;
  std::memcpy(&yes_bits, &yes, sizeof(yes));
  std::memcpy(&no_bits, &no, sizeof(no));
  const uint32_t bits = (yes_bits & mask) | (no_bits & ~mask);
  float chosen;
  std::memcpy(&chosen, &bits, sizeof(bits));
  return chosen;
#endif
}

FCOS_HOST_DEVICE FCOS_INLINE double choose(bool condition, double yes, double no) {
  return condition ? yes : no;
}

FCOS_HOST_DEVICE FCOS_INLINE float magnitude(float x) {
  return FCOS_DEVICE_OR_HOST(fabsf(x), std::abs(x));
}
FCOS_HOST_DEVICE FCOS_INLINE double magnitude(double x) {
  return FCOS_DEVICE_OR_HOST(fabs(x), std::abs(x));
}

// 1 / x for x in [1, 3]; on the GPU within 1 unit in the last place, in one instruction.
FCOS_HOST_DEVICE FCOS_INLINE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}
FCOS_HOST_DEVICE FCOS_INLINE double reciprocal(double x) { return 1.0 / x; }

// exp(x) for x <= 0 within 2 units in the last place; 0 below -87, where float32 ends. A NaN may
// come out as a number on the GPU, whose callers have other terms that keep it.
// x = n log 2 + r with |r| <= log(2)/2; exp(r) = 1 + r + r^2 Q(r) with Q fitted for the least
// relative error (3e-9). Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
FCOS_HOST_DEVICE FCOS_INLINE float exp_of_negative(float x) {
#if defined(__CUDA_ARCH__)
  // 2^(x / log 2), the exponent in two parts, of which the GPU takes the first, rounded one, to the
  // power. Clamped, since infinity in both parts would cancel to NaN; a NaN comes out as a number.
  const float clamped = fmaxf(x, -127.0f);
  const float power = clamped * 1.44269502f;
  float rest = fmaf(clamped, 1.44269502f, -power);
  rest = fmaf(clamped, 1.92596299e-8f, rest);
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(power));
  return fmaf(y * 0.69314718f, rest, y);
#else
  constexpr float kRound = 12582912.0f;
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  float r = x - n * 0.693359375f;  // log 2 in two parts, the first with few bits: n * it is exact
  r = r - n * -2.12194440e-4f;
  float q = 0.0013814599f;
  q = q * r + 0.008368717f;
  q = q * r + 0.04166839f;
  q = q * r + 0.16666521f;
  q = q * r + 0.49999994f;
  const float mantissa = (q * r) * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4B400000u + 127u) << 23;  // 0x4B400000: the bits of kRound
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return choose(x < -87.0f, 0.0f, mantissa * scale);  // NaN stays NaN
#endif
}

// log(1 + u) for u in [0, 1] with a small relative error also where u is tiny:
// 2 atanh(s) with s = u / (2 + u) <= 1/3, atanh(s) = s + s^3 P(s^2), P fitted (5e-9).
FCOS_HOST_DEVICE FCOS_INLINE float log_of_one_plus(float u) {
  const float s = FCOS_DEVICE_OR_HOST(u * reciprocal(2.0f + u), u / (2.0f + u));
  const float t = s * s;
  float p = 0.2802514f;  // twice P
  p = p * t + 0.27999014f;
  p = p * t + 0.40021706f;
  p = p * t + 0.66666412f;
  return s * (2.0f + t * p);
}

FCOS_HOST_DEVICE FCOS_INLINE double exp_of_negative(double x) {
  return FCOS_DEVICE_OR_HOST(exp(x), std::exp(x));
}
FCOS_HOST_DEVICE FCOS_INLINE double log_of_one_plus(double u) {
  return FCOS_DEVICE_OR_HOST(log1p(u), std::log1p(u));
}

template <typename T>
struct Terms {
  T q;        // sigmoid(z)
  T one_minus_q;
  T softplus;
  T modulation;  // q^gamma
};

// `square` is gamma == 2, the value of every published configuration, without a logarithm.
template <bool square, typename T>
FCOS_HOST_DEVICE FCOS_INLINE Terms<T> terms_of(T z, T gamma) {
  const T u = exp_of_negative(-magnitude(z));
  const T log1p_u = log_of_one_plus(u);
  const T large = reciprocal(T(1) + u), small = u * large;  // sigmoid(|z|), sigmoid(-|z|)
  Terms<T> terms;
  terms.q = choose(z < T(0), small, large);
  terms.one_minus_q = choose(z < T(0), large, small);
  terms.softplus = choose(z < T(0), T(0), z) + log1p_u;  // a NaN stays
  // log q = -softplus(-z), exact where q itself has rounded to 0 or 1
  terms.modulation = square ? terms.q * terms.q
                            : exp_of_negative(gamma * (choose(z < T(0), z, T(0)) - log1p_u));
  return terms;
}

// f(z) and f'(z).
template <bool square, typename T>
FCOS_HOST_DEVICE FCOS_INLINE void both_of(T z, T gamma, T& loss, T& slope) {
  const Terms<T> terms = terms_of<square>(z, gamma);
  loss = terms.modulation * terms.softplus;
  slope = terms.modulation * (terms.q + gamma * terms.one_minus_q * terms.softplus);
}

template <bool square, typename T>
FCOS_HOST_DEVICE FCOS_INLINE T loss_of(T z, T gamma) {
  const Terms<T> terms = terms_of<square>(z, gamma);
  return terms.modulation * terms.softplus;
}

template <bool square, typename T>
FCOS_HOST_DEVICE FCOS_INLINE T slope_of(T z, T gamma) {
  const Terms<T> terms = terms_of<square>(z, gamma);
  return terms.modulation * (terms.q + gamma * terms.one_minus_q * terms.softplus);
}

}  // namespace fcos_core
