// Sites: what each can do, how old that word is, and how another one joins.
import { Button, Modal, Switch, TextInput } from '@mantine/core'
import { useDisclosure } from '@mantine/hooks'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useState } from 'react'
import { type Site, client, data } from '../api'
import { moment, span } from '../format'
import { Command, Empty, Facts, Page, Section, State, Trouble, Waiting } from '../parts'
import { type Report, as } from '../records'

function One({ site, administrates }: { site: Site; administrates: boolean }) {
  const queries = useQueryClient()
  const accept = useMutation({
    mutationFn: () => data(client.POST('/api/v1/sites/{site}/approval', { params: { path: { site: site.id } } })),
    onSuccess: () => void queries.invalidateQueries({ queryKey: ['sites'] }),
  })
  const report = as<Report>(site.report)
  const fresh = site.age_s == null ? undefined : site.age_s < 2 ? 'looked just now' : `looked ${span(site.age_s * 1000)} ago`
  return (
    <Section title={site.name} aside={<><span className="dim">{fresh}</span><State of={site.state} /></>}>
      <div className="body">
        {site.why && <div className="notice">{site.why}</div>}
        {accept.error && <Trouble error={accept.error} />}
        {site.state === 'pending' && administrates && <Button size="xs" onClick={() => accept.mutate()} loading={accept.isPending} aria-label={`Accept the site ${site.name}`}>Accept it</Button>}
        {report?.missing.filter((one) => one !== site.why).map((one) => <div key={one} className="notice">{one}</div>)}
        {report ? <Facts of={[
          ['Platform', `${report.platform}, ${report.nodes} ${report.nodes === 1 ? 'node' : 'nodes'} (${report.architectures.join(', ')})`],
          ['Copies', report.data_kinds.join(', ')],
          ['Restores push to', report.registry ?? 'no registry: images are pulled from where they came'],
          ['Storage classes', report.storage_classes.join(', ') || 'none'],
          ['Namespaces', report.may_create_namespaces ? 'may be created' : 'may not be created'],
          ['Agent', report.agent_version],
          ['Who sees it', site.private ? 'only you' : 'everybody'],
        ]} /> : <Empty title="It has not reported yet" />}
      </div>
    </Section>
  )
}

export function Sites() {
  const queries = useQueryClient()
  const [open, dialog] = useDisclosure(false)
  const [name, setName] = useState('')
  const [own, setOwn] = useState(false)
  const found = useQuery({ queryKey: ['sites'], queryFn: ({ signal }) => data(client.GET('/api/v1/sites', { signal })), refetchInterval: 10_000 })
  const me = useQuery({ queryKey: ['me'], queryFn: ({ signal }) => data(client.GET('/api/v1/me', { signal })) })
  const add = useMutation({
    mutationFn: () => data(client.POST('/api/v1/sites', { body: { name: name.trim(), private: own } })),
    onSuccess: () => void queries.invalidateQueries({ queryKey: ['sites'] }),
  })
  const close = () => { dialog.close(); add.reset(); setName('') }
  return (
    <Page title="Sites" actions={<Button variant="default" onClick={dialog.open}>Let a site join</Button>}>
      {found.error && <Trouble error={found.error} again={() => void found.refetch()} />}
      {found.isPending && <Waiting />}
      {found.data?.length === 0 && <Empty title="There is no site yet">A site is a cluster with an agent beside it.</Empty>}
      <div className="cards">{found.data?.map((site) => <One key={site.id} site={site} administrates={me.data?.role === 'administrator'} />)}</div>
      <Modal opened={open} onClose={close} title="Let a site join" size="lg">
        {add.data ? (
          <div className="form">
            <p>Run this beside the cluster of <b>{add.data.name}</b>. The token works once, until {moment(add.data.expires)}, and is shown only now.</p>
            <Command text={`ocopea agent --coordinator ${location.origin} --join-token ${add.data.token} --context CONTEXT`} />
            <p className="dim">CONTEXT is the cluster's in your kubeconfig. Restores that bring container images need a registry there, too: --registry HOST/PATH.</p>
            <div className="acts"><Button onClick={close}>Done</Button></div>
          </div>
        ) : (
          <form className="form" onSubmit={(event) => { event.preventDefault(); add.mutate() }}>
            <TextInput label="Name" description="Lower-case letters, digits and '-'" value={name} maxLength={63} onChange={(event) => setName(event.currentTarget.value)} data-autofocus />
            <Switch label="Only I see and use it" checked={own} onChange={(event) => setOwn(event.currentTarget.checked)} />
            {add.error && <Trouble error={add.error} />}
            <div className="acts"><Button type="submit" loading={add.isPending} disabled={!name.trim()}>Show the command</Button></div>
          </form>
        )}
      </Modal>
    </Page>
  )
}
