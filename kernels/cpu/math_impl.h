// exp, softplus and SiLU on sixteen lanes, over whichever simd_*.h the including file chose.
// Largest errors, measured by tests/kernels/math_test.cc: see kernels/README.md.
#pragma once

namespace vivarium::kernels {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;

// 2^f for |f| <= 0.5: exactly 1 at 0, elsewhere within 1e-8 before rounding (Chebyshev fit).
inline Vec Exp2Fraction(Vec f) {
  Vec p = Set(1.5453163e-4f);
  p = MulAdd(p, f, Set(1.3390863e-3f));
  p = MulAdd(p, f, Set(9.6180830e-3f));
  p = MulAdd(p, f, Set(5.5503570e-2f));
  p = MulAdd(p, f, Set(2.4022651e-1f));
  p = MulAdd(p, f, Set(6.9314718e-1f));
  return MulAdd(p, f, Set(1.0f));
}

// 2^t.
inline Vec Exp2(Vec t) {
  const ExponentSplit split = SplitExponent(t);
  return Scale(Exp2Fraction(split.fraction), split.whole);
}

// e^x, with the argument reduced in two steps (Cody & Waite) so that a large |x| costs no accuracy.
inline Vec Exp(Vec x) {
  x = Min(Set(89.0f), Max(Set(-105.0f), x));  // e^x is infinite above, 0 below; NaN passes
  const Vec n = Round(Mul(x, Set(kLog2E)));
  const Vec minus_n = Sub(Set(0.0f), n);
  Vec r = MulAdd(minus_n, Set(0x1.63p-1f), x);   // ln 2, its first 9 bits: exact product
  r = MulAdd(minus_n, Set(-2.12194440e-4f), r);  // and the rest
  return Scale(Exp2Fraction(Mul(r, Set(kLog2E))), n);
}

// log(1 + e^v) = max(v, 0) + log1p(u), u = e^-|v|, and log1p(u) = 2 atanh(u / (2 + u)): relative
// accuracy holds for very negative v too. Equal to v in f32 from v = 18 on.
inline Vec Softplus(Vec v) {
  const Vec u = Exp(Sub(Set(0.0f), Abs(v)));
  const Vec s = Div(u, Add(Set(2.0f), u));
  const Vec s2 = Mul(s, s);
  Vec q = Set(2.6851499e-1f);
  q = MulAdd(q, s2, Set(2.8236619e-1f));
  q = MulAdd(q, s2, Set(4.0007561e-1f));
  q = MulAdd(q, s2, Set(6.6666639e-1f));
  const Vec log1p = MulAdd(Mul(s, s2), q, Add(s, s));
  return Add(Max(Set(0.0f), v), log1p);
}

// x * sigmoid(x).
inline Vec Silu(Vec x) { return Div(x, Add(Set(1.0f), Exp(Sub(Set(0.0f), x)))); }

}  // namespace
}  // namespace vivarium::kernels
