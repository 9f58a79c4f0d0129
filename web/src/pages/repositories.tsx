// Repositories: where images lie, and whether their stores can be used.
import { Button } from '@mantine/core'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useNavigate } from '@tanstack/react-router'
import { type Repository, client, data, once } from '../api'
import { bytes, number } from '../format'
import { Ago, Facts, Page, Section, State, Trouble, Waiting } from '../parts'

function One({ repository, administrates }: { repository: Repository; administrates: boolean }) {
  const queries = useQueryClient()
  const navigate = useNavigate()
  const verify = useMutation({
    mutationFn: () => data(client.POST('/api/v1/repository/verifications', { params: { header: once() }, body: { repository: repository.name } })),
    onSuccess: (accepted) => void navigate({ to: '/operations/$operation', params: { operation: accepted.operation } }),
  })
  const prefer = useMutation({
    mutationFn: () => data(client.PUT('/api/v1/repositories/{repository}/default', { params: { path: { repository: repository.id } } })),
    onSuccess: () => void queries.invalidateQueries({ queryKey: ['repositories'] }),
  })
  const error = verify.error ?? prefer.error
  return (
    <Section title={repository.name} aside={<State of={repository.state} />}>
      <div className="body form">
        {repository.why && <div className="notice bad">{repository.why}</div>}
        {error && <Trouble error={error} />}
        <Facts of={[
          ['Location', <span key="l" className="mono">{repository.location}</span>],
          ['Images', `${number(repository.images)}, which brought ${bytes(repository.new_bytes)} before compression`],
          ['Keys of its store', repository.keys],
          ['Its store can', repository.found.join('; ')],
          ['Looked at', repository.found_at ? <Ago at={repository.found_at} /> : ''],
          ['Saves go there', repository.is_default ? 'unless they name another' : 'where they name it'],
        ]} />
        <div className="acts">
          {administrates && !repository.is_default && <Button size="xs" variant="default" onClick={() => prefer.mutate()} loading={prefer.isPending}>Make it the default</Button>}
          <Button size="xs" variant="default" onClick={() => verify.mutate()} loading={verify.isPending} aria-label={`Verify ${repository.name}`}>Verify</Button>
        </div>
      </div>
    </Section>
  )
}

export function Repositories() {
  const me = useQuery({ queryKey: ['me'], queryFn: ({ signal }) => data(client.GET('/api/v1/me', { signal })) })
  const found = useQuery({ queryKey: ['repositories'], queryFn: ({ signal }) => data(client.GET('/api/v1/repositories', { signal })) })
  return (
    <Page title="Repositories">
      {found.error && <Trouble error={found.error} again={() => void found.refetch()} />}
      {found.isPending && <Waiting />}
      <div className="cards">{found.data?.map((one) => <One key={one.id} repository={one} administrates={me.data?.role === 'administrator'} />)}</div>
    </Page>
  )
}
