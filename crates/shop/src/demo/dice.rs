//! Dice that fall the same way each time: a demo of numbers that can be compared.

/// A small generator (xorshift64*): good enough for customers and baskets.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One of `0..below`.
    pub(crate) fn roll(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from((high * u64::from(below)) >> 32).expect("BUG: it is below a u32")
    }

    pub(crate) fn customer(&mut self) -> String {
        const NAMES: [&str; 12] = [
            "Ada",
            "Barbara",
            "Edsger",
            "Frances",
            "Grace",
            "Hedy",
            "Jean",
            "Katherine",
            "Margaret",
            "Niklaus",
            "Radia",
            "Sophie",
        ];
        format!("{} {}", NAMES[self.roll(12) as usize], self.roll(100))
    }

    pub(crate) fn sku(&mut self) -> String {
        const WARES: [&str; 8] = ["cup", "kettle", "lamp", "notebook", "pen", "teapot", "tray", "vase"];
        format!("{}-{:02}", WARES[self.roll(8) as usize], self.roll(25))
    }
}
