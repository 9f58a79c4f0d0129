//! The in-process bus against the conformance suite.

use ocopea_protocol::{
    bus::{AgentBus, conformance, in_process::InProcessBus},
    ids::SiteId,
    seams::Seams,
};

#[tokio::test]
async fn the_in_process_bus_conforms() {
    let seams = Seams::real(Default::default());
    let bus = InProcessBus::new(seams.clone());
    conformance::check(&conformance::Fixture {
        coordinator: &bus,
        sites: [SiteId::generate(&seams), SiteId::generate(&seams)],
        agent: &|site| Box::new(bus.agent(site)) as Box<dyn AgentBus>,
        seams: &seams,
    })
    .await;
}
