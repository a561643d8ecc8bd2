// What a page asks for once (and again when told to): the answer, or why there is none.
import { useEffect, useState } from "preact/hooks";
import { problemOf, type Problem } from "../api";

export interface Loaded<Answer> {
  answer: Answer | null;
  problem: Problem | null;
  isLoading: boolean;
  reload: () => void;
}

/** `load` is called when `key` changes, and on `reload`; the last answer is shown meanwhile. */
export function useLoaded<Answer>(key: string, load: () => Promise<Answer>): Loaded<Answer> {
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [isLoading, setLoading] = useState(true);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let isWanted = true;
    setLoading(true);
    load().then(
      (found) => {
        if (!isWanted) return;
        setAnswer(found);
        setProblem(null);
        setLoading(false);
      },
      (error) => {
        if (!isWanted) return;
        setProblem(problemOf(error));
        setLoading(false);
      },
    );
    return () => {
      isWanted = false;
    };
  }, [key, turn]);
  return { answer, problem, isLoading, reload: () => setTurn((before) => before + 1) };
}
