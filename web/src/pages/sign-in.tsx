// Signing in by the link that `ocopea up` prints. The code leaves the address as soon as it is used.
import { Button, TextInput } from '@mantine/core'
import { useMutation, useQueryClient } from '@tanstack/react-query'
import { useRouter } from '@tanstack/react-router'
import { useEffect, useRef, useState } from 'react'
import { client, data } from '../api'
import { recall, keep } from '../kept'
import { Trouble } from '../parts'

/** Takes the code out of what was pasted: the whole link, or the code alone. */
const codeIn = (text: string) => /[?&]code=([^&\s']+)/.exec(text)?.[1] ?? text.trim()

export function SignIn({ code, present }: { code?: string; present: string | undefined }) {
  const queries = useQueryClient()
  const router = useRouter()
  const [pasted, setPasted] = useState('')
  const tried = useRef('')
  const here = location.pathname === '/sign-in' ? '' : location.pathname + location.search
  useEffect(() => { document.title = 'Sign in · Ocopea'; if (here) keep('meant', here) }, [here])
  const enter = useMutation({
    mutationFn: (given: string) => data(client.POST('/api/v1/session', { body: { code: given }, params: { header: { 'ocopea-page': '1' } } })),
    onSuccess: async (me) => {
      queries.clear()
      queries.setQueryData(['me'], me)
      const meant = recall('meant')
      keep('meant', '')
      // Only a path of this address: whatever else was kept is no way to go.
      const to = here || (meant?.startsWith('/') && !meant.startsWith('//') ? meant : '/applications')
      router.history.replace(to)
    },
  })
  // A link that comes from elsewhere doesn't take the place of who is signed in: that takes a click.
  useEffect(() => {
    if (code && !present && tried.current !== code) { tried.current = code; enter.mutate(code) }
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [code, present])
  return (
    <main className="alone">
      <div className="section"><div className="body form">
        <span className="brand"><img src="/favicon.svg" alt="" width="22" height="22" />Ocopea</span>
        <h1>Sign in</h1>
        {enter.error && <Trouble error={enter.error} />}
        {code && present && !enter.error ? (
          <>
            <p>You are signed in as <b>{present}</b>. This link would begin a session of its own.</p>
            <Button onClick={() => enter.mutate(code)} loading={enter.isPending}>Sign in with the link</Button>
            <Button variant="default" onClick={() => router.history.replace('/applications')}>Stay signed in as {present}</Button>
          </>
        ) : (
          <form className="form" onSubmit={(event) => { event.preventDefault(); enter.mutate(codeIn(pasted)) }}>
            <p className="dim">{here ? 'Sign in, and the page that you opened comes next.' : 'Paste the link or the code.'} The program prints a sign-in link when it starts; each works once, for ten minutes.</p>
            <TextInput label="Link or code" value={pasted} onChange={(event) => setPasted(event.currentTarget.value)} autoComplete="off" maxLength={500} autoFocus />
            <Button type="submit" loading={enter.isPending} disabled={!pasted.trim()}>Sign in</Button>
          </form>
        )}
      </div></div>
    </main>
  )
}
