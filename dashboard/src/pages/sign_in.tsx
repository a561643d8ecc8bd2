// The way in: an operator's key, which becomes a cookie that scripts can't read.
import { useState } from "preact/hooks";
import { problemOf, signedOutBecause, signIn, type Problem } from "../api";
import { Field, ProblemBox } from "../ui/basics";
import { Mark } from "../ui/mark";

export function SignInPage() {
  const [typed, setTyped] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const send = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setProblem(null);
    try {
      await signIn(typed.trim());
    } catch (error) {
      setProblem(problemOf(error));
      setBusy(false);
    }
  };
  return (
    <main class="sign-in">
      <form class="card" onSubmit={send}>
        <div class="brand"><Mark /> Brigade</div>
        <h1>Sign in</h1>
        {signedOutBecause.value && <div class="notice notice-warn" role="status">{signedOutBecause.value}</div>}
        <Field label="Operator's key" hint="An admin key, such as the one in the coordinator's state folder (admin.key)">
          <input type="password" name="key" required autoFocus autocomplete="off" spellcheck={false} value={typed}
            onInput={(event) => setTyped(event.currentTarget.value)} />
        </Field>
        {problem && <ProblemBox problem={problem} />}
        <button class="primary wide" disabled={isBusy} aria-busy={isBusy}>Sign in</button>
      </form>
    </main>
  );
}
