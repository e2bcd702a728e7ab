//! CPython's `random.Random`, as far as few-shot examples are drawn with it: the Mersenne Twister MT19937 (Matsumoto and
//! Nishimura 1998) seeded by an array, and `sample`.

use std::collections::HashSet;

/// Words of state.
const WORDS: usize = 624;
/// Distance of the word that is mixed in.
const MIDDLE: usize = 397;

/// A generator that gives what `random.Random(seed)` gives.
#[derive(Clone)]
pub(super) struct Random {
    state: [u32; WORDS],
    next: usize,
}

impl Random {
    /// The generator of a seed that fits 32 bits, whose array is that one word.
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [0_u32; WORDS];
        state[0] = 19_650_218;
        for i in 1..WORDS {
            state[i] = 1_812_433_253_u32
                .wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30))
                .wrapping_add(i as u32);
        }
        let mut i = 1;
        let mixed = |state: &[u32; WORDS], i: usize, factor: u32| {
            let before = state[i - 1];
            state[i] ^ (before ^ (before >> 30)).wrapping_mul(factor)
        };
        for _ in 0..WORDS {
            // The key has one word, so its index, which is added too, is always 0.
            state[i] = mixed(&state, i, 1_664_525).wrapping_add(seed);
            i += 1;
            if i == WORDS {
                state[0] = state[WORDS - 1];
                i = 1;
            }
        }
        for _ in 1..WORDS {
            state[i] = mixed(&state, i, 1_566_083_941).wrapping_sub(i as u32);
            i += 1;
            if i == WORDS {
                state[0] = state[WORDS - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Self { state, next: WORDS }
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            for i in 0..WORDS {
                let joined =
                    (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
                let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + MIDDLE) % WORDS] ^ (joined >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number below `n`, drawn again while it is not (`_randbelow_with_getrandbits`).
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.word() >> (32 - bits.min(32))) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// The places of `count` different ones of `n` things, in the order in which `random.sample` picks them; `None` if
    /// there are not so many.
    pub(super) fn sample(&mut self, n: usize, count: usize) -> Option<Vec<usize>> {
        if count > n || n > u32::MAX as usize {
            return None;
        }
        // Where a set of the chosen takes less room than a list of all.
        let mut set_size = 21_usize;
        if count > 5 {
            let power = ((count * 3) as f64).log(4.0).ceil() as u32;
            set_size += 4_usize.pow(power);
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            let drawn = (0..count).map(|i| {
                let j = self.below(n - i);
                let chosen = pool[j];
                pool[j] = pool[n - i - 1];
                chosen
            });
            return Some(drawn.collect());
        }
        let mut seen = HashSet::new();
        let drawn = (0..count).map(|_| {
            loop {
                let j = self.below(n);
                if seen.insert(j) {
                    return j;
                }
            }
        });
        Some(drawn.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_those_of_cpython() {
        // random.Random(1234): sample(range(n), k) for these, one after the other.
        let mut random = Random::new(1234);
        let expected: &[(usize, usize, &[usize])] = &[
            (10, 3, &[7, 1, 0]),
            (1000, 5, &[92, 932, 965, 961, 826]),
            (
                21,
                21,
                &[
                    18, 1, 2, 3, 11, 7, 0, 14, 12, 13, 5, 9, 15, 8, 19, 16, 6, 10, 17, 4, 20,
                ],
            ),
            (100, 11, &[8, 85, 69, 59, 76, 86, 11, 65, 74, 5, 34]),
            (7473, 5, &[6753, 4558, 516, 5280, 2477]),
            (85, 6, &[61, 45, 34, 31, 25, 58]),
            (86, 6, &[67, 85, 2, 65, 9, 0]),
            (1, 1, &[0]),
            (
                100000,
                25,
                &[
                    18844, 93062, 61974, 86160, 49459, 21903, 7100, 9992, 77008, 65087, 21496,
                    9872, 73050, 28192, 18906, 3555, 45381, 14534, 69426, 18511, 87884, 40028,
                    59525, 5189, 54558,
                ],
            ),
        ];
        for (n, count, places) in expected {
            assert_eq!(
                random.sample(*n, *count).unwrap(),
                *places,
                "{count} of {n}"
            );
        }
        assert_eq!(random.sample(3, 4), None);
    }
}
