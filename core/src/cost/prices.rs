//! The prices of what loading uses: a table that comes with Sluice, or an edited one.

use serde::{Deserialize, Serialize};

use super::{Amounts, Items};
use crate::yaml;

/// The prices that come with Sluice, as `sluice cost --print-prices` prints them.
pub const DEFAULT: &str = include_str!("../../../config/prices.yaml");

/// The prices of all items, in one currency.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    pub currency: String,
    pub prices: Items<Price>,
}

/// A price: `price` for every `per` of the item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub price: f64,
    pub per: f64,
    /// What `per` counts, in words.
    pub unit: String,
    /// Where the price is from.
    pub source: String,
    /// When the price held.
    pub as_of: String,
}

impl Prices {
    /// Reads a table of prices. Every item must have one; 0 is valid.
    ///
    /// # Errors
    ///
    /// Names every place in the text that is wrong, and the problem there.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        let prices: Self = yaml::parse(text).map_err(|problems| {
            let problems = problems.iter().map(ToString::to_string);
            problems.collect::<Vec<_>>().join("; ")
        })?;
        for (name, price) in prices.prices.named() {
            if !(price.price.is_finite() && price.price >= 0.0) {
                return Err(format!("prices.{name}.price: must be at least 0"));
            }
            if !(price.per.is_finite() && price.per > 0.0) {
                return Err(format!("prices.{name}.per: must be greater than 0"));
            }
        }
        Ok(prices)
    }

    /// Returns what these amounts cost, item by item.
    pub fn cost(&self, amounts: &Amounts) -> Amounts {
        amounts.with(&self.prices, |amount, price| {
            amount / price.per * price.price
        })
    }
}

impl Default for Prices {
    /// Returns the prices that come with Sluice.
    fn default() -> Self {
        Self::from_yaml(DEFAULT).expect("a test reads the table")
    }
}
