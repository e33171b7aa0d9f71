//! Finds the smallest plan with which a seed still fails.

use super::plan::Plan;
use super::run_plan;

/// Returns the smallest plan found with which the world of this seed still fails, given one with
/// which it fails: kinds of faults are left out one by one, and then objects, workers and replicas.
///
/// A smaller world is another world, so the result is not always minimal, and can fail in another
/// way.
pub fn shrink(seed: u64, plan: &Plan) -> Plan {
    let mut smallest = plan.clone();
    while let Some(smaller) = smaller_plans(&smallest)
        .into_iter()
        .find(|smaller| fails(seed, smaller))
    {
        smallest = smaller;
    }
    smallest
}

fn fails(seed: u64, plan: &Plan) -> bool {
    !run_plan(seed, plan, false).violations.is_empty()
}

/// Returns the plans that are a step smaller, those first that make the trace simpler.
fn smaller_plans(plan: &Plan) -> Vec<Plan> {
    let mut smaller = Vec::new();
    for fault in &plan.faults {
        let mut without = plan.clone();
        without.faults.remove(fault);
        smaller.push(without);
    }
    let objects = plan.objects;
    for objects in [objects / 2, objects * 3 / 4, objects * 9 / 10] {
        let plan = plan.clone();
        smaller.push(Plan { objects, ..plan });
    }
    for (workers, replicas) in [
        (plan.workers - 1, plan.replicas),
        (plan.workers, plan.replicas - 1),
    ] {
        smaller.push(Plan {
            workers,
            replicas,
            ..plan.clone()
        });
    }
    for plan in &mut smaller {
        plan.complete();
    }
    let is_world = |plan: &Plan| plan.objects > 0 && plan.workers > 0 && plan.replicas > 0;
    // What a fault requires was added again.
    smaller.retain(|smaller| smaller != plan && is_world(smaller));
    smaller
}
